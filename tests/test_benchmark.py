"""The benchmarks: what is computed from clocks and counters by hand, and tiny runs that say what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from jobs.benchmark import main
from jobs.benchmarks import decoding, ingest, measure, sampling, scaling, scoring
from jobs.benchmarks.measure import Measured
from tests.conftest import write_shards
from tests.holding import hold
from tests.test_images import encode, photograph

REPOSITORY = Path(__file__).parents[1]
ran = pytest.mark.ray  # each starts a Ray of its own


# Memory.


def fake_process(proc: Path, process: int, name: str, parent: int, kib: int | None) -> None:
    (proc / str(process)).mkdir()
    (proc / str(process) / "stat").write_text(f"{process} ({name}) S {parent} 1 1 0\n")
    if kib is not None:
        rollup = f"55d0-7ffd ---p 0 [rollup]\nRss: 9999 kB\nPss: {kib} kB\nPss_Anon: 7 kB\nPss_Shmem: 3 kB\n"
        (proc / str(process) / "smaps_rollup").write_text(rollup)


def test_memory_of_a_tree_by_hand(tmp_path):
    fake_process(tmp_path, 10, "python", 1, 100)
    fake_process(tmp_path, 11, "ray::Scorer) S 99 (", 10, 50)  # a name may look like what follows it
    fake_process(tmp_path, 12, "raylet", 11, 25)
    fake_process(tmp_path, 13, "zombie", 10, None)
    fake_process(tmp_path, 14, "another's", 1, 1000)
    assert measure.tree_memory(10, tmp_path) == (100 + 50 + 25) * 1024
    assert measure.tree_memory(12, tmp_path) == 25 * 1024
    assert measure.tree_memory(77, tmp_path) == 0


def test_a_process_of_its_own_is_measured_with_its_children():
    started = time.time()
    small, large = (measure.in_own_process(hold, size, memory=True) for size in (1, 200_000_000))
    assert small.peak_bytes is not None and large.peak_bytes is not None
    assert (small.result, large.result) == (1, 200_000_000)
    # Shares of common pages change by some tens of MB as other processes come and go; one of the two would be 200 MB.
    assert_allclose(large.peak_bytes - small.peak_bytes, 400_000_000, rtol=0.2)
    assert started <= small.started <= large.started - 3
    assert small.seconds > 3


# Time.


def test_growth_exponent_by_hand():
    assert_allclose(measure.growth_exponent([1, 2, 4], [5, 10, 20]), 1)
    assert_allclose(measure.growth_exponent([10, 100, 1000], [7, 70 * 10**0.5, 7000]), 1.5)  # 7, 221.4, 7000
    # log2 of the seconds is 0, 2, 3 at 0, 1, 2: the line through them rises by (3 - 0) / 2.
    assert_allclose(measure.growth_exponent([1, 2, 4], [1, 4, 8]), 1.5)


def test_steady_rate_by_hand():
    # Two workers that finish together: 20 images a second, though 40 in two seconds is not what two instants tell.
    assert_allclose(measure.steady_rate([1, 1, 2, 2, 3, 3], [10] * 6), 20)
    assert_allclose(measure.steady_rate([3, 1, 2], [5, 5, 5]), 5)  # in any order
    late = [*range(1, 10), 30]  # the last of ten is left out
    assert_allclose(measure.steady_rate(late, [4] * 10), 4)
    with pytest.raises(ValueError, match="more images"):
        measure.steady_rate([1.0], [5])


def test_contenders_take_turns():
    calls: list[str] = []
    contenders = {name: (lambda name=name: calls.append(name) or len(calls)) for name in "abc"}
    assert measure.interleaved(contenders, 2) == {"a": [1, 4], "b": [2, 5], "c": [3, 6]}
    assert "".join(calls) == "abcabc"


def test_table():
    rows = [("one", 12345, 0.01234, ""), ("another", 7, 123.456, 2.0)]
    assert measure.format_table(("what", "n", "x", "y"), rows).splitlines() == [
        "what          n       x     y",
        "one      12,345  0.0123",
        "another       7     123  2.00",
    ]


def test_scaling_by_hand():
    # 400 images for 3 s more than 100: 0.01 s each, so 1600 take 13 + 12 = 25 s.
    runs = [
        {"num_images": 100, "seconds": 10.0, "peak_gib": 2.0},
        {"num_images": 400, "seconds": 13.0, "peak_gib": 2.1},
        {"num_images": 1600, "seconds": 30.0, "peak_gib": 2.2},
    ]
    assert scaling.compare(runs) == pytest.approx({"time_to_linear": 1.2, "memory_last_to_first": 1.1})


def test_score_ratios_by_hand():
    def timeline(rate: float) -> Measured:
        return Measured(([100 + 1 / rate, 100 + 2 / rate, 100 + 3 / rate], [1, 1, 1]), 99.0, 4.0, 0)

    found = {"ray": [timeline(8.0)], "bare_loop": [timeline(4.0)], "data_loader": [timeline(16.0)]}
    result = scoring.summarize(found | {"decode": [30.0], "forward": [15.0]}, shares_cores=True)
    assert result["ceilings"]["possible"] == pytest.approx(10)  # 1 / (1/30 + 1/15)
    ratios = result["ratios"]
    assert ratios["to_bare_loop"] == pytest.approx(2)
    assert ratios["to_data_loader"] == pytest.approx(0.5)
    assert ratios["to_possible"] == pytest.approx(0.8)
    assert ratios["to_lower_ceiling"] == pytest.approx(8 / 15)
    assert ratios["to_bare_loop_with_start_up"] == pytest.approx(1)  # 3 images in 4 s, all of them
    assert result["seconds_to_first_piece"]["bare_loop"] == pytest.approx(1.25)
    on_a_gpu = scoring.summarize(found | {"decode": [30.0], "forward": [15.0]}, shares_cores=False)
    assert on_a_gpu["ceilings"]["possible"] == pytest.approx(15)


def test_train_ratios_by_hand():
    runs = {"ray_streamed": [[(10, 5.0), (10, 1.0), (10, 4.0)]], "ray_cached": [[(10, 5.0), (10, 1.0)]]}
    loaders = {"data_loader": [[(10, 10.0), (10, 2.0)]], "data_loader_shards": [[(10, 10.0), (10, 4.0)]]}
    result = ingest.summarize({**runs, **loaders})
    assert result["first_epoch"] == {"ray_streamed": 2, "ray_cached": 2, "data_loader": 1, "data_loader_shards": 1}
    assert result["later_epochs"] == {"ray_streamed": 4, "ray_cached": 10, "data_loader": 5, "data_loader_shards": 2.5}
    assert result["ratios"]["ray_streamed"] == pytest.approx({"data_loader": 0.8, "data_loader_shards": 1.6})
    assert result["ratios"]["ray_cached"] == pytest.approx({"data_loader": 2, "data_loader_shards": 4})


# Data.


@pytest.mark.parametrize("zipf", [0.0, 0.5, 1.0, 2.0])
def test_class_sizes_add_up_and_fall(zipf):
    sizes = sampling.class_sizes(10_007, 100, zipf)
    assert sizes.sum() == 10_007
    assert sizes.min() >= 1
    assert (np.diff(sizes) <= 0).all()
    assert_allclose(np.log(sizes[0] / sizes[9]) / np.log(10), zipf, atol=0.03)


def test_synthetic_scores_are_what_the_stage_writes(tmp_path):
    sizes = np.array([900, 90, 10])
    sampling.write_scores(str(tmp_path / "scores"), sizes, 6)
    store = sampling.RunStore(str(tmp_path / "scores"))
    table = store.read("scores")
    assert table.schema.equals(sampling.schema.scores(6))
    assert len(store.files("scores")) == 2  # 768 and 232
    assert np.bincount(table["label"]).tolist() == sizes.tolist()
    assert len(set(table["sample_id"].to_pylist())) == len(set(table["key"].to_pylist())) == 1000
    np.testing.assert_array_equal(table["correct"], table["loss"].to_numpy() < np.log(2))


def test_repeated_shards_are_the_same_files(tmp_path, digits):
    write_shards(digits, tmp_path / "in", 2)
    scaling.repeat_shards(str(tmp_path / "in"), tmp_path / "three", 3)
    found = sorted((tmp_path / "three").iterdir())
    assert len(found) == 6
    assert [path.stat().st_ino for path in found] == [p.stat().st_ino for p in sorted((tmp_path / "in").iterdir())] * 3


def test_images_are_repeated_to_the_number_asked(tmp_path, digits):
    write_shards(digits.slice(0, 70), tmp_path / "in", 2)
    (tmp_path / "out").mkdir()
    scoring.write_images(str(tmp_path / "in"), str(tmp_path / "out"), 100, 40)
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out").iterdir())]
    assert [table.num_rows for table in tables] == [40, 40, 20]
    assert pa.concat_tables(tables)["image"].to_pylist() == (digits["image"].to_pylist()[:70] * 2)[:100]


# Tiny runs.


@pytest.fixture(scope="module")
def shards(tmp_path_factory, digits) -> str:
    return str(write_shards(digits, tmp_path_factory.mktemp("benchmark") / "digits", 2))


def result_of(capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> dict[str, Any]:
    assert main([name, *arguments]) == 0
    *table, line = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["benchmark"] == name
    assert result["machine"]["cpus"] == len(os.sched_getaffinity(0))
    assert result["arguments"] == [name, *arguments]
    assert len(table) >= 4
    return result


@ran
@pytest.mark.long
@pytest.mark.timeout(600)
def test_score(capsys, shards):
    sizes = ("--image-size", "16", "--batch-size", "16", "--shard-rows", "16", "--num-images", "160")
    few = ("--repeats", "1", "--ceiling-seconds", "0.2")
    result = result_of(capsys, "score", "--input", shards, "--arch", "lenet", *sizes, *few)
    steady, ceilings = result["images_per_second"], result["ceilings"]
    assert steady.keys() == {"ray", "bare_loop", "data_loader"}
    assert ceilings["possible"] < min(ceilings["decode"], ceilings["forward"])
    ratios = result["ratios"]
    assert ratios["to_bare_loop"] == steady["ray"] / steady["bare_loop"]
    assert ratios["to_data_loader"] == steady["ray"] / steady["data_loader"]
    assert ratios["to_possible"] == steady["ray"] / ceilings["possible"]
    assert result["seconds_to_first_piece"]["ray"] > result["seconds_to_first_piece"]["bare_loop"] > 0
    assert result["first_piece_images"] == 16


@ran
@pytest.mark.long
@pytest.mark.timeout(600)
def test_sample(capsys):
    result = result_of(
        *(capsys, "sample", "--num-samples", "1600", "--num-features", "8", "--num-classes", "10", "--zipf", "1")
    )
    runs = result["runs"]
    assert [run["num_samples"] for run in runs.values()] == [400, 800, 1600, 1600, 1600]
    assert [run["num_kept"] for run in runs.values()] == [120, 240, 480, 480, 480]
    assert not any(run["classes_off_quota"] for run in runs.values())
    assert result["ratios"]["same_selection"]
    assert all(run["peak_gib"] > 0 for run in runs.values())
    seconds = {name: run["seconds"] for name, run in runs.items()}
    exponent = np.polyfit(np.log([400, 800, 1600]), np.log(list(seconds.values())[:3]), 1)[0]
    assert result["ratios"]["growth_exponent"] == pytest.approx(exponent)
    assert result["ratios"]["one_process_to_ray"] == seconds["even, one process"] / seconds["even, 1 of N"]
    assert result["ratios"]["zipf_to_even"] == seconds["Zipf 1"] / seconds["even, 1 of N"]


@ran
@pytest.mark.long
@pytest.mark.timeout(600)
def test_scale(capsys, shards):
    result = result_of(
        *(capsys, "scale", "--input", shards, "--arch", "lenet", "--image-size", "16", "--multiples", "1", "2", "3")
    )
    assert [(run["multiple"], run["num_images"]) for run in result["runs"]] == [(1, 400), (2, 800), (3, 1200)]
    assert result["ratios"] == scaling.compare(result["runs"])
    with pytest.raises(ValueError, match="ascending"):
        main(["scale", "--input", shards, "--multiples", "4", "2", "1"])


@ran
@pytest.mark.long
@pytest.mark.timeout(600)
def test_train(capsys, shards):
    sizes = ("--image-size", "16", "--batch-size", "32", "--num-images", "200", "--epochs", "2", "--repeats", "1")
    result = result_of(capsys, "train", "--input", shards, *sizes)
    later = result["later_epochs"]
    loaders = ("data_loader", "data_loader_shards")
    assert later.keys() == result["first_epoch"].keys() == {"ray_streamed", "ray_cached", *loaders}
    assert result["ratios"] == {
        name: {other: later[name] / later[other] for other in loaders} for name in ("ray_streamed", "ray_cached")
    }


def test_decode(capsys, tmp_path):
    content = [encode(photograph(side), "JPEG") for side in (300, 420)]
    write_shards(pa.table({"image": pa.array(content, pa.binary()), "label": [0, 1]}), tmp_path / "in", 1)
    sizes = ("--sizes", "72", "32", "--repeats", "1")
    result = result_of(capsys, "decode", "--input", str(tmp_path / "in"), *sizes)["decoders"]
    assert result.keys() == {f"{name} at {size}" for name in decoding.DECODERS for size in (72, 32)}
    speed = {name: found["images_per_second"] for name, found in result.items()}
    for name in decoding.DECODERS:
        found = result[f"{name} at 72"]
        assert found["to_torchvision"] == pytest.approx(speed[f"{name} at 72"] / speed["torchvision at 72"])
    assert result["Pillow at 72"]["mean_difference"] < 0.4  # of rounding alone: 0.25
    assert result["razor_ray.images at 72"]["mean_difference"] < 0.4
    assert 0.4 < result["simplejpeg, scaled to the target at 72"]["mean_difference"] < 20


def test_decoded_reference_by_hand():
    # Two columns of black and two of white to two pixels: the triangle of antialiasing is two source pixels wide on a
    # side, and sees 0.75, 0.75, 0.25 (and nothing beyond the rim) of the four columns: 0.25 / 1.75 of white.
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, 2:] = 255
    found = decoding.reference(encode(Image.fromarray(pixels), "PNG"), 2)
    assert_allclose(found[:, :, 0], [[255 / 7, 255 * 6 / 7]] * 2)


def test_help_from_a_checkout():
    shown = subprocess.run(
        [sys.executable, "jobs/benchmark.py", "--help"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},  # as Ray sets it for a working_dir
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert all(name in shown.stdout for name in ("score", "sample", "scale", "decode", "train"))
