from razor_ray.energy import counters, joules_between


def write_package(folder, name, micro, limit=262_143_000_000, of="package-0"):
    (folder / name).mkdir()
    (folder / name / "name").write_text(f"{of}\n")
    (folder / name / "energy_uj").write_text(f"{micro}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{limit}\n")


def test_packages_are_read_and_their_parts_are_not(tmp_path):
    write_package(tmp_path, "intel-rapl:0", 2_500_000)
    write_package(tmp_path, "intel-rapl:0:0", 9_000_000, of="core")
    write_package(tmp_path, "intel-rapl:1", 1_000_000, of="package-1")
    write_package(tmp_path, "intel-rapl:2", 7_000_000, of="psys")  # of the whole board, the packages among it
    (tmp_path / "intel-rapl:3").mkdir()  # without its counter, as for a user who may not read it
    found = {name: value for name, value in counters(tmp_path).items() if name.startswith("intel")}
    assert found == {"intel-rapl:0": (2.5, 262_143.0), "intel-rapl:1": (1.0, 262_143.0)}


def test_no_counter_is_not_zero_joules():
    assert joules_between({}, {}) is None
    assert joules_between({"gpu-0": (5.0, float("inf"))}, {"gpu-1": (9.0, float("inf"))}) is None


def test_a_counter_that_has_lost_its_count_tells_nothing():
    before = {"gpu-0": (5.0, float("inf")), "intel-rapl:0": (90.0, 100.0)}
    assert joules_between(before, {"gpu-0": (2.0, float("inf")), "intel-rapl:0": (95.0, 100.0)}) is None


def test_counters_add_up_and_may_start_again():
    before = {"gpu-0": (5.0, float("inf")), "intel-rapl:0": (90.0, 100.0)}
    after = {"gpu-0": (7.5, float("inf")), "intel-rapl:0": (10.0, 100.0)}
    assert joules_between(before, after) == 2.5 + 20.0
