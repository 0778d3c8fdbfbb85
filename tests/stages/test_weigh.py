"""The distributed reduce against the same formulas over all losses in one array."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from razor_ray import schema, weights
from razor_ray.config import WeighConfig
from razor_ray.run_store import RunStore
from razor_ray.stages import weigh

NAMES = tuple("abcdefg")
pytestmark = pytest.mark.usefixtures("ray_session")


def make_scores(num_samples: int, seed: int = 0) -> pa.Table:
    """Scores as a skewed dataset has them: class e is empty, class g has one sample, many losses are equal."""
    rng = np.random.default_rng(seed)
    label = rng.choice(6, num_samples, p=[0.5, 0.25, 0.15, 0.06, 0.0, 0.04]).astype(np.int32)
    label[num_samples // 2] = 6
    loss = np.round(rng.exponential(0.7, num_samples), 2).astype(np.float32)
    columns = {
        "sample_id": schema.sample_ids(3, 2**24 - 5, num_samples),
        "key": [f"k{index}" for index in range(num_samples)],
        "label": label,
        "loss": loss,
        "el2n": (loss / (1 + loss)).astype(np.float32),
        "margin": np.tanh(loss - 1).astype(np.float32),
        "entropy": loss,
        "correct": loss < 0.7,
        "predicted": np.where(loss < 0.7, label, (label + 1) % 7),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(rng.normal(size=num_samples * 4).astype(np.float16)), 4
        ),
    }
    expected = schema.scores(4)
    return pa.table([pa.array(columns[name], expected.field(name).type) for name in expected.names], schema=expected)


def commit_scores(
    store: RunStore, table: pa.Table, num_files: int, order: list[int] | None = None, hardness: str = "el2n"
) -> None:
    """Commit scores as that many files, whose names are in another order than their rows."""
    folder = store.begin("scores")
    bounds = np.linspace(0, table.num_rows, num_files + 1).astype(int)
    for place, part in enumerate(order or range(num_files)):
        rows = table.slice(bounds[part], bounds[part + 1] - bounds[part])
        pq.write_table(rows, f"{folder}/part-{place:03d}.parquet")
    store.commit("scores", {"num_samples": table.num_rows, "hardness": hardness})


def weighed(folder, table: pa.Table, config: WeighConfig, num_files: int = 3, keep_fraction: float = 0.3):
    store = RunStore(str(folder))
    commit_scores(store, table, num_files)
    weigh.weigh(store, NAMES, config, keep_fraction, trained_for="epochs")
    return weigh.read(store)


@pytest.mark.parametrize("scheme", ["hard", "linear", "log", "mixture", "diversity"])
def test_agrees_with_one_array(tmp_path, scheme):
    table = make_scores(2000)
    config = WeighConfig(scheme=scheme, quantile=0.4)
    got = weighed(tmp_path / scheme, table, config)
    loss, label = table["loss"].to_numpy().astype(np.float64), table["label"].to_numpy()
    threshold = weights.loss_quantile(loss, 0.4)
    assert got.ispl.threshold == threshold
    v = weights.ispl_weights(
        loss,
        scheme=scheme,
        threshold=threshold,
        second_threshold=threshold / 2,
        diversity_step=threshold,
        labels=label,
    )
    present = np.unique(label)
    sizes = np.array([(label == value).sum() for value in present])
    counts = np.array([v[label == value].sum() for value in present])
    beta = 1 - len(present) / 2000
    class_weight = weights.class_weights(counts, beta)
    assert got.table["label"].to_pylist() == [0, 1, 2, 3, 5, 6]  # a class without samples has no row
    assert got.table["class_name"].to_pylist() == ["a", "b", "c", "d", "f", "g"]
    assert_array_equal(got.table["num_samples"], sizes)
    assert_allclose(got.table["class_weight"], class_weight, rtol=1e-12)
    assert_allclose(sum(got.table["class_weight"].to_pylist()), 6)
    assert_allclose(got.table["num_effective"], weights.effective_number(np.maximum(counts, 1), beta), rtol=1e-12)
    assert_array_equal(got.table["quota"], weights.class_quotas(class_weight * counts, sizes, 600))


@pytest.mark.parametrize("quantile", [0.0, 0.25, 0.7, 1.0])
def test_quantile_is_exact(tmp_path, quantile):
    table = make_scores(997, seed=1)
    got = weighed(tmp_path / "run", table, WeighConfig(quantile=quantile))
    assert got.ispl.threshold == weights.loss_quantile(table["loss"].to_numpy(), quantile)


def test_all_losses_zero(tmp_path):
    table = make_scores(300)
    at = table.schema.get_field_index("loss")
    table = table.set_column(at, table.schema.field(at), pa.array(np.zeros(300, np.float32)))
    got = weighed(tmp_path / "run", table, WeighConfig())
    assert sum(got.table["quota"].to_pylist()) == 90  # nobody is hard; the budget is met all the same


def test_bit_identical_however_the_scores_are_cut(tmp_path):
    table = make_scores(2000)
    shuffled = table.take(pa.array(np.random.default_rng(5).permutation(2000)))
    found = []
    for name, (rows, num_files, order) in {
        "1": (table, 1, None),
        "3": (table, 3, [2, 0, 1]),
        "7": (table, 7, None),
        "shuffled": (shuffled, 5, None),
    }.items():
        store = RunStore(str(tmp_path / name))
        commit_scores(store, rows, num_files, order)
        weigh.weigh(store, NAMES, WeighConfig(), 0.3, trained_for="epochs")
        found.append(weigh.read(store))
    for other in found[1:]:
        assert other.table.equals(found[0].table)
        assert other.ispl == found[0].ispl


@pytest.mark.parametrize("rule", ["ispl", "proportional", "uniform", "recall"])
def test_quota_rules(tmp_path, rule):
    table = make_scores(2000)
    got = weighed(tmp_path / rule, table, WeighConfig(quota=rule))
    quota, sizes = got.table["quota"].to_numpy(), got.table["num_samples"].to_numpy()
    assert quota.sum() == 600
    assert (quota >= 1).all() and (quota <= sizes).all()
    if rule == "proportional":
        share = 600 * sizes / 2000
        assert (np.abs(quota - share)[sizes > 1] <= 1).all()
    if rule == "recall":
        label, correct = table["label"].to_numpy(), table["correct"].to_numpy(zero_copy_only=False)
        recall = np.array([correct[label == value].mean() for value in got.table["label"].to_pylist()])
        assert_array_equal(quota, weights.class_quotas(1 - recall, sizes, 600))
    if rule == "uniform":
        assert np.ptp(quota[quota < sizes]) <= 1  # the same for all that are not kept whole


def test_many_more_names_than_classes(tmp_path):
    # ImageNet's thousand names on a subset of six classes: most of the partitions are empty.
    store = RunStore(str(tmp_path / "run"))
    commit_scores(store, make_scores(300), 2)
    weigh.weigh(store, tuple(f"class {label}" for label in range(1000)), WeighConfig(), 0.5, trained_for="epochs")
    assert sum(weigh.read(store).table["quota"].to_pylist()) == 150


def test_nothing_was_scored(tmp_path):
    store = RunStore(str(tmp_path / "run"))
    commit_scores(store, make_scores(300).slice(0, 0), 1)
    with pytest.raises(ValueError, match="no sample was scored"):
        weigh.weigh(store, NAMES, WeighConfig(), 0.5, trained_for="epochs")


def test_infeasible_floor(tmp_path):
    with pytest.raises(ValueError, match="floor of 200"):
        weighed(tmp_path / "run", make_scores(2000), WeighConfig(class_floor=200), keep_fraction=0.1)
