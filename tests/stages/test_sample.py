"""Same scores, same selection: bit for bit, however the scores are cut, ordered or named."""

import pickle
import re
import tracemalloc
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray

from razor_ray import apportion, sampling, schema
from razor_ray.config import InputConfig, PruneConfig, SampleConfig, ScoreConfig, WeighConfig
from razor_ray.run_store import RunStore
from razor_ray.selection import Samples, gamma_razor
from razor_ray.stages import runtime, weigh
from razor_ray.stages.sample import _declared_memory, random_ids, sample
from razor_ray.stages.score import hardness_column
from razor_ray.window import Levels, Window, contradicted_fraction, from_zero
from tests.stages.test_weigh import NAMES, commit_scores, make_scores

pytestmark = pytest.mark.usefixtures("ray_session")


def select(folder, table, num_files=3, order=None, **settings) -> pa.Table:
    """Weigh and sample; the selection by sample id."""
    store = RunStore(str(folder))
    arguments = {"input": InputConfig(path="unused"), "output": str(folder), "keep_fraction": 0.3} | settings
    config = PruneConfig(**arguments)
    commit_scores(store, table, num_files, order, hardness_column(config.score, table.column_names))
    weigh.weigh(store, NAMES, config.weigh, config.keep_fraction, trained_for=config.sample.trained_for)
    sample(store, weigh.read(store), config)
    selection = schema.check(store.read("selection"), schema.SELECTION, "selection")
    return selection.sort_by("sample_id").combine_chunks()


@contextmanager
def one_worker():
    """Leave Ray one CPU, so that tasks run one after the other."""
    taken = ray.util.placement_group([{"CPU": 1}] * (int(ray.cluster_resources()["CPU"]) - 1))
    ray.get(taken.ready())
    try:
        assert ray.available_resources().get("CPU", 0) <= 1
        yield
    finally:
        ray.util.remove_placement_group(taken)


def test_selection_is_exact_and_complete(tmp_path):
    table = make_scores(2000)
    selection = select(tmp_path / "run", table)
    assert selection["sample_id"].equals(table["sample_id"])
    assert selection["key"].equals(table["key"])
    assert pc.sum(selection["keep"]).as_py() == 600
    quotas = weigh.read(RunStore(str(tmp_path / "run"))).table
    for label, quota in zip(quotas["label"].to_pylist(), quotas["quota"].to_pylist(), strict=True):
        rows = selection.filter(pc.field("label") == label)
        assert pc.sum(rows["keep"]).as_py() == quota
        assert sorted(rows["rank"].to_pylist()) == list(range(1, rows.num_rows + 1))
        assert set(rows.filter(rows["keep"])["rank"].to_pylist()) == set(range(1, quota + 1))
    kept_reasons = set(selection.filter(selection["keep"])["reason"].to_pylist())
    assert kept_reasons <= {"hard", "cluster", "class_floor"}
    assert set(selection.filter(pc.invert(selection["keep"]))["reason"].to_pylist()) <= {"over_quota", "noise"}
    assert selection.filter(pc.field("label") == 6)["reason"].to_pylist() == ["class_floor"]


@pytest.mark.parametrize(("per_cpu", "declared"), [(2**40, 2**30), (2**20, int(0.8 * 2**20))])
def test_tasks_declare_their_memory(tmp_path, monkeypatch, per_cpu, declared):
    asked = {}
    run_tasks = runtime.run_tasks

    def asking(function, arguments, *, name, **options):
        asked[name] = options
        return run_tasks(function, arguments, name=name)

    monkeypatch.setattr(runtime, "node_shapes", lambda: ([{"CPU": 4.0, "memory": 4.0 * per_cpu}], True))
    monkeypatch.setattr(runtime, "run_tasks", asking)
    select(tmp_path / "run", make_scores(200))
    assert set(asked["sample classes"]["memory"]) == {declared}


def test_the_task_of_a_very_large_class_declares_more_than_the_others(monkeypatch):
    gib = 2**30
    monkeypatch.setattr(runtime, "node_shapes", lambda: ([{"CPU": 16.0, "memory": 64.0 * gib}], True))
    assert _declared_memory(2**20) == _declared_memory(2**28) == gib
    assert _declared_memory(2**31) == 8 * gib
    # Never more than a node has: too little memory is no reason to wait for ever.
    assert _declared_memory(2**40) == int(0.8 * 64 * gib)


@contextmanager
def arrow_memory():
    """A pool of Arrow's that counts from 0, for this process."""
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(usual)


def test_the_drivers_memory_does_not_grow_with_the_samples(tmp_path, monkeypatch):
    """What comes back to it of the reduce and of sampling is a row per class, and it reads no scores itself."""
    monkeypatch.setattr(apportion, "_STRETCH", 2**8)  # of which even the small budget has one
    get, got = ray.get, []

    def measured(refs, **options):
        found = get(refs, **options)
        got.append(len(pickle.dumps(found)))
        return found

    monkeypatch.setattr(ray, "get", measured)
    peaks = []
    for num_samples in (1000, 1000, 300_000):  # the first also loads what is loaded once
        store = RunStore(str(tmp_path / str(len(peaks))))
        config = PruneConfig(input=InputConfig(path="unused"), output=store.uri, keep_fraction=0.3)
        commit_scores(store, make_scores(num_samples), 4)
        got.clear()
        with arrow_memory() as pool:
            tracemalloc.start()
            weigh.weigh(store, NAMES, config.weigh, config.keep_fraction, trained_for="epochs")
            sample(store, weigh.read(store), config)
            peaks.append((tracemalloc.get_traced_memory()[1], pool.max_memory(), sum(got)))
            tracemalloc.stop()
        assert store.commit_facts("selection")["num_kept"] == num_samples * 3 // 10
    # Losses are counted in arrays of half a mebibyte, one more or less at a time. Four bytes of each sample would show.
    assert all(large < small + 2**20 for small, large in zip(peaks[1], peaks[2], strict=True)), peaks


def test_bit_identical_at_any_cut_order_and_number_of_workers(tmp_path, monkeypatch):
    table = make_scores(2000)
    shuffled = table.take(pa.array(np.random.default_rng(5).permutation(2000)))
    one = select(tmp_path / "1", table, 1)
    assert select(tmp_path / "3", table, 3, [2, 0, 1]).equals(one)
    assert select(tmp_path / "7", table, 7).equals(one)
    assert select(tmp_path / "shuffled", shuffled, 4).equals(one)
    with one_worker():
        assert select(tmp_path / "one-worker", table, 5).equals(one)
    monkeypatch.setattr(runtime, "num_cpus", lambda: 7)  # more tasks in flight, other groups of files
    assert select(tmp_path / "workers", table, 5).equals(one)


@pytest.mark.parametrize(
    ("quota", "hardness", "with_aum", "trained_for"),
    [("ispl", "el2n", False, "epochs"), ("recall", "margin", False, "epochs"), ("ispl", "loss", True, "steps")],
)
def test_the_same_as_gamma_razor_in_one_call(tmp_path, quota, hardness, with_aum, trained_for):
    # Of 1,999 the budget is no three tenths, but 600 of 1,999: what the window follows.
    table, rng = make_scores(2000).slice(0, 1999), np.random.default_rng(4)
    at = table.schema.get_field_index(hardness)
    values = rng.exponential(size=1999).astype(np.float32) - (hardness == "margin")  # no two are the same
    table = table.set_column(at, table.schema.field(at), pa.array(values, pa.float32()))
    names = [*schema.SCORE_NAMES, "correct"]
    if with_aum:  # of it, not of the margin of one pass, is what the proxy contradicts
        table = table.append_column("aum", pa.array(rng.normal(-1.0, 1.0, 1999), pa.float32()))
        names.append("aum")
    settings = {
        "weigh": WeighConfig(scheme="diversity", quota=quota),
        "score": ScoreConfig(hardness=hardness),
        "sample": SampleConfig(trained_for=trained_for),
    }
    selection = select(tmp_path / "run", table, seed=5, **settings)
    embedding = table["embedding"].combine_chunks()
    samples = Samples(
        ids=table["sample_id"].to_numpy(),
        label=table["label"].to_numpy(),
        scores={name: table[name].to_numpy() for name in names},
        embedding=embedding.flatten().to_numpy().reshape(1999, -1),
        hardness=hardness,
    )
    keep = gamma_razor(samples, 600, 5, weigh=settings["weigh"], sample=settings["sample"])
    np.testing.assert_array_equal(keep, selection["keep"])
    contradicted = contradicted_fraction(table["aum" if with_aum else "margin"])
    assert 0.05 < contradicted < 0.5
    window = RunStore(str(tmp_path / "run")).commit_facts("selection")["window"]
    assert window == asdict(Window.of(settings["sample"], 600 / 1999, contradicted))


def test_a_proxy_that_contradicts_nothing_or_nearly_all_is_told_of(tmp_path, capfd):
    table = make_scores(500)
    at = table.schema.get_field_index("margin")
    sure = table.set_column(at, table.schema.field(at), pa.array(np.full(500, -1, np.float32)))
    select(tmp_path / "sure", sure)
    assert "note      the proxy contradicts 0.0% of the labels, too few to say which" in capfd.readouterr().err
    select(tmp_path / "given", sure, sample=SampleConfig(gamma=0.0))  # as it was asked for
    select(tmp_path / "unsure", table)
    assert "note" not in capfd.readouterr().err
    lost = table.set_column(
        at, table.schema.field(at), pa.array(np.where(np.arange(500) < 310, 0.5, -0.5), pa.float32())
    )
    select(tmp_path / "lost", lost)
    assert "note      the proxy contradicts 62.0% of the labels: what it finds hard says" in capfd.readouterr().err
    (note,) = RunStore(str(tmp_path / "lost")).commit_facts("selection")["notes"]
    assert note.startswith("the proxy contradicts 62.0% of the labels: what it finds hard says little")


def test_classes_that_are_starved_are_told_of(tmp_path, capfd):
    table = make_scores(2000)
    at, loss, label = table.schema.get_field_index("loss"), table["loss"].to_numpy(), table["label"].to_numpy()
    easy = table.set_column(at, table.schema.field(at), pa.array(np.where(label == 0, 1e-4 * loss, loss)))
    select(tmp_path / "starved", easy)
    size = int((label == 0).sum())
    said = capfd.readouterr().err
    assert re.search(rf"note      of 1 of \d+ classes less than a fifth is kept .*: \S+ \(\d+ of {size:,}\)\. ", said)
    select(tmp_path / "even", table)
    select(tmp_path / "uniform", easy, weigh=WeighConfig(quota="uniform"))
    assert "less than a fifth" not in capfd.readouterr().err


def test_settings_without_their_effect_are_told_of(tmp_path, capfd):
    table = make_scores(500)
    select(tmp_path / "blunt", table, sample=SampleConfig(gamma=0.0, focus=0.4))
    assert "note      sample.focus 0.4 has no effect where γ is 0" in capfd.readouterr().err
    even = WeighConfig(quota="uniform")
    both = SampleConfig(trained_for="steps", gamma=1.0, focus=0.4)
    for_steps = select(tmp_path / "both", table, weigh=even, sample=both)
    assert "note      sample.trained_for steps keeps the same samples here as epochs would" in capfd.readouterr().err
    given = WeighConfig(beta=0.9)
    select(tmp_path / "flat", table, weigh=given, sample=SampleConfig(trained_for="steps", gamma=0.0))
    assert "note      sample.trained_for steps keeps the same samples here" in capfd.readouterr().err
    select(tmp_path / "one", table, weigh=even, sample=SampleConfig(trained_for="steps", gamma=1.0))
    by_quotas = select(tmp_path / "quotas", table, sample=both)
    of_each = WeighConfig(quota="proportional")  # three tenths of every class
    select(tmp_path / "sharp", table, weigh=of_each, sample=SampleConfig(gamma=1.0, focus=0.4, tail=0.69))
    assert "note" not in capfd.readouterr().err
    for_epochs = replace(both, trained_for="epochs")
    assert for_steps["keep"].equals(select(tmp_path / "same", table, weigh=even, sample=for_epochs)["keep"])
    assert not by_quotas["keep"].equals(select(tmp_path / "other", table, sample=for_epochs)["keep"])
    selection = select(tmp_path / "short", table, weigh=of_each, sample=SampleConfig(tail=0.9))
    sizes = np.bincount(table["label"].to_numpy())
    assert np.sort(sizes[sizes > 0])[:2].tolist() == [1, 26], "the class of one is kept whole: nothing to set aside"
    told = "note      sample.tail 0.9 would leave fewer samples than are to be kept in 5 of 6 classes: there less is"
    assert told in capfd.readouterr().err
    assert pc.sum(selection["keep"]).as_py() == 150


def test_another_seed_selects_others(tmp_path):
    table = make_scores(2000)
    one, other = select(tmp_path / "0", table, seed=0), select(tmp_path / "1", table, seed=1)
    assert one["keep"].to_pylist() != other["keep"].to_pylist()
    assert pc.sum(other["keep"]).as_py() == 600


def test_with_an_id_column_a_resharding_changes_nothing(tmp_path):
    table = make_scores(2000)
    resharded = table.take(pa.array(np.random.default_rng(7).permutation(2000)))
    at = table.schema.get_field_index("sample_id")
    resharded = resharded.set_column(at, table.schema.field(at), pa.array(schema.sample_ids(0, 0, 2000)))
    by_id = {"input": InputConfig(path="unused", id_column="name")}
    columns = ["key", "keep", "rank", "reason", "cluster", "ispl_weight"]
    one = select(tmp_path / "a", table, **by_id).sort_by("key").select(columns)
    other = select(tmp_path / "b", resharded, **by_id).sort_by("key").select(columns)
    assert other.equals(one)
    by_place = select(tmp_path / "c", resharded).sort_by("key").select(columns)
    assert not by_place.equals(one)  # without it the place decides, and that has changed


def test_ids_that_are_given_twice_in_a_class_are_told_of(tmp_path, capfd):
    table = make_scores(200)
    at = table.schema.get_field_index("key")
    key = table["key"].to_pylist()
    rows = np.flatnonzero(table["label"].to_numpy() == 0)[:4]
    for row in rows[1:3]:
        key[row] = key[rows[0]]
    key[np.flatnonzero(table["label"].to_numpy() == 1)[0]] = key[rows[3]]  # of another class: no choice is between them
    twice = table.set_column(at, table.schema.field(at), pa.array(key))
    by_id = {"input": InputConfig(path="unused", id_column="name")}
    assert pc.sum(select(tmp_path / "a", twice, **by_id)["keep"]).as_py() == 60
    assert "warning   2 samples have the id of another of their class" in capfd.readouterr().err
    select(tmp_path / "b", table, **by_id)
    assert "warning" not in capfd.readouterr().err


def test_ids_of_users_are_hashed_by_their_bytes():
    ids = random_ids(np.array([7, 8]), ["a", "b"], by_key=True)
    # blake2b with a digest of 8 bytes, little endian, as `b2sum -l 64` gives it.
    assert [int(value) for value in ids] == [
        int.from_bytes(bytes.fromhex(digest), "little") for digest in ("40f89e395b66422f", "8472c2e34d854f75")
    ]
    assert random_ids(np.array([2**33 + 1]), ["a"], by_key=False).tolist() == [2**33 + 1]


@pytest.mark.parametrize("tail", ["auto", 0.1])
@pytest.mark.parametrize("hardness", ["el2n", "margin", "entropy"])
def test_each_class_is_sampled_as_the_pure_function_says(tmp_path, hardness, tail):
    table = contradicted(make_scores(2000))
    settings = SampleConfig(tail=tail)
    selection = select(tmp_path / "run", table, score=ScoreConfig(hardness=hardness), sample=settings, seed=3)
    np.testing.assert_array_equal(selection["hardness"], table[hardness])
    committed = weigh.read(RunStore(str(tmp_path / "run"))).table
    window = Window.of(settings, 0.3, contradicted_fraction(table["margin"]))
    counted = from_zero(table[hardness].to_numpy(), hardness)
    log_weight = window.log_weights(Levels.counted(counted).of(counted))
    for label, quota in zip(committed["label"].to_pylist(), committed["quota"].to_pylist(), strict=True):
        rows = table.filter(pc.field("label") == label)
        got = selection.filter(pc.field("label") == label)
        embedding = rows["embedding"].combine_chunks()
        expected = sampling.sample_class(
            hardness=rows[hardness].to_numpy(),
            log_weight=log_weight[table["label"].to_numpy() == label],
            embedding=embedding.flatten().to_numpy().reshape(len(embedding), -1),
            ids=rows["sample_id"].to_numpy(),
            quota=quota,
            seed=3,
            label=label,
            wrong_label_fraction=sampling.estimate_wrong_labels(rows["loss"].to_numpy(), rows["margin"].to_numpy()),
            settings=settings,
            floor_bound=quota == 1,
        )
        np.testing.assert_array_equal(got["keep"].to_numpy(zero_copy_only=False), expected.keep)
        np.testing.assert_array_equal(got["rank"], expected.rank)
        np.testing.assert_array_equal(got["cluster"], expected.cluster)
        assert got["reason"].to_pylist() == [sampling.REASONS[code] for code in expected.reason]


def contradicted(table: pa.Table) -> pa.Table:
    """The scores with scores that rank differently, and a third of the samples contradicted with confidence."""
    rng = np.random.default_rng(11)
    replaced = {
        "margin": np.where(rng.random(2000) < 0.3, 0.9, -0.5) + rng.normal(0, 0.01, 2000),
        "entropy": rng.random(2000),
        "loss": np.where(rng.random(2000) < 0.3, 4.0, 0.1) + rng.random(2000) * 0.01,
    }
    for name, values in replaced.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values.astype(np.float32)))
    return table


@pytest.mark.parametrize("clustering", ["mean_shift", "none"])
def test_other_clusterings_meet_the_budget(tmp_path, clustering):
    selection = select(tmp_path / "run", make_scores(2000), sample=SampleConfig(clustering=clustering))
    assert pc.sum(selection["keep"]).as_py() == 600


def test_everything_is_kept_at_one(tmp_path):
    selection = select(tmp_path / "run", make_scores(500), keep_fraction=1.0)
    assert selection["keep"].to_pylist() == [True] * 500


def test_ispl_weights_are_those_of_the_schemes(tmp_path):
    table = make_scores(1000)
    selection = select(tmp_path / "run", table, weigh=WeighConfig(scheme="hard"))
    committed = weigh.read(RunStore(str(tmp_path / "run")))
    by_label = dict(zip(committed.table["label"].to_pylist(), committed.table["class_weight"].to_pylist(), strict=True))
    hard = table["loss"].to_numpy() >= committed.ispl.threshold
    expected = [by_label[label] * is_hard for label, is_hard in zip(table["label"].to_pylist(), hard, strict=True)]
    np.testing.assert_allclose(selection["ispl_weight"], expected, rtol=1e-6)
