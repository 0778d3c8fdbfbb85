"""manifest.json: what it holds of a small run made by hand, and that counts which do not add up are a failure."""

from __future__ import annotations

import json
import platform

import pyarrow as pa
import pytest

import razor_ray
from razor_ray import manifest, schema
from razor_ray.config import InputConfig, PruneConfig
from razor_ray.run_store import RunStore

CONFIG = PruneConfig(input=InputConfig(path="in"), output="out", keep_fraction=0.5, seed=7)

FACTS = {
    "catalog": {"num_shards": 2, "num_samples": 10, "fingerprint": "aabb"}
    | {"class_names": ["cat", "cow", "dog", "bee"], "class_sizes": [6, 2, 2, 0]},
    "proxy": {"arch": "resnet9", "image_size": 8, "num_classes": 3, "trained": False, "weights_sha256": "ab" * 32},
    "scores": {"num_samples": 8, "batch_size": 4, "precision": "float32", "hardness": "el2n"},
    "quarantine": {"num_samples": 2, "reasons": {"not an image": 1, "label is null": 1}},
    "weights": {
        "num_samples": 8,
        "budget": 4,
        "ispl": {"scheme": "linear"},
        "beta": 0.5,
        "contradicted_fraction": 0.25,
    },
    "selection": {
        "num_kept": 4,
        "mean_kept_weight": 1.0,
        "reasons": {"hard": 3, "cluster": 1, "over_quota": 4},
        "kept_by_class": {"0": 3, "2": 1},
        "window": {"focus": 0.3, "sharpness": 7.0},
        "notes": ["the proxy contradicts 80.7% of the labels"],
    },
    "subset": {"num_samples": 4, "num_bytes": 1234},
}
WEIGHTS = pa.table(
    [
        pa.array([0, 2], pa.int32()),
        pa.array(["cat", "dog"]),
        pa.array([6, 2], pa.int64()),
        pa.array([5.5, 1.9]),
        pa.array([0.5, 1.5]),
        pa.array([3, 1], pa.int64()),
    ],
    schema=schema.WEIGHTS,
)


def finished(tmp_path, **changes) -> RunStore:
    """A run whose stages have committed `FACTS`, some of them changed: stage__fact=value."""
    store = RunStore(str(tmp_path / "run"))
    facts = json.loads(json.dumps(FACTS))
    for name, value in changes.items():
        stage, _, fact = name.partition("__")
        facts[stage][fact] = value
    for stage, value in facts.items():
        store.seal(stage, value)
    store.write_json("scores/.cost.json", {"seconds": 12.5, "joules": 300.0})
    store.write_json("weights/.cost.json", {"seconds": 0.5, "joules": None})
    return store


def test_manifest_by_hand(tmp_path):
    store = finished(tmp_path)
    got = manifest.write(store, CONFIG, WEIGHTS)
    assert got["counts"] == {"input": 10, "scored": 8, "kept": 4, "dropped": 4, "quarantined": 2}
    assert got["budget"] == {"keep_fraction": 0.5, "asked": 4, "met": 4}
    assert got["classes"] == [
        {"label": 0, "name": "cat", "num_samples": 6, "quota": 3, "kept": 3},
        {"label": 2, "name": "dog", "num_samples": 2, "quota": 1, "kept": 1},
    ]
    assert got["classes_lost"] == [{"label": 1, "name": "cow", "num_samples": 2}]
    assert got["quarantine"] == {"not an image": 1, "label is null": 1}
    assert got["reasons"] == FACTS["selection"]["reasons"]
    assert got["proxy"]["weights_sha256"] == "ab" * 32
    assert got["seed"] == 7
    assert got["ispl"] == {
        "scheme": "linear",
        "beta": 0.5,
        "contradicted_fraction": 0.25,
        "earlier_thresholds": [],
    }
    assert got["window"] == {"focus": 0.3, "sharpness": 7.0}
    assert got["scores_from"] is None
    # The proxy was given: one forward pass, a third of an epoch.
    assert got["scoring_cost"] == {"epochs": 1 / 3, "full_epochs": 100, "fraction": pytest.approx(1 / 300)}
    assert got["subset_bytes"] == 1234
    assert got["seconds"]["scores"] == 12.5
    assert got["joules"]["scores"] == 300.0
    assert got["seconds"].keys() == {"catalog", "proxy", "scores", "weights", "selection", "subset"}
    assert got["seconds"]["subset"] is None
    assert got["joules"]["weights"] is None
    assert got["razor_ray"] == razor_ray.__version__
    assert got["python"] == platform.python_version()
    assert got["packages"]["pyarrow"] == pa.__version__
    assert None not in got["packages"].values()
    assert store.read_json("manifest.json") == got


def test_rounds_cost_a_pass_each_and_are_listed(tmp_path):
    rounds = [{"ispl": {"threshold": threshold}, "effective_count": {"0": 1.0}} for threshold in (2.0, 1.0)]
    store = finished(tmp_path, proxy__trained=True, proxy__metrics={"epoch": 9}, proxy__rounds=rounds)
    got = manifest.write(store, CONFIG, WEIGHTS)
    assert got["scoring_cost"]["epochs"] == 10.0  # nine epochs and three passes
    assert got["ispl"]["earlier_thresholds"] == [2.0, 1.0]
    assert "rounds" not in got["proxy"]


def test_scoring_costs_at_most_15_percent_of_a_full_training_by_default(tmp_path):
    store = finished(tmp_path, proxy__trained=True, proxy__metrics={"epoch": CONFIG.proxy.epochs})
    cost = manifest.write(store, CONFIG, WEIGHTS)["scoring_cost"]
    assert 0 < cost["epochs"] / cost["full_epochs"] == cost["fraction"] <= 0.15


def test_input_is_what_was_catalogued(tmp_path):
    got = manifest.write(finished(tmp_path), CONFIG, WEIGHTS)["input"]
    assert got == {"path": "in", "fingerprint": "aabb", "num_shards": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {"catalog__num_samples": 11},  # one more was catalogued than is accounted for
        {"catalog__num_samples": 9},
        {"quarantine__num_samples": 1},
        {"weights__num_samples": 7},  # a score was lost on its way to the weights
    ],
)
def test_lost_samples_are_a_failure(tmp_path, changes):
    store = finished(tmp_path, **changes)
    with pytest.raises(RuntimeError, match=r"samples were lost: .*Please report this"):
        manifest.write(store, CONFIG, WEIGHTS)
    assert store.read_json("manifest.json") is None


@pytest.mark.parametrize("changes", [{"subset__num_samples": 3}, {"subset__num_samples": 5}, {"weights__budget": 5}])
def test_a_missed_budget_is_a_failure(tmp_path, changes):
    store = finished(tmp_path, **changes)
    with pytest.raises(RuntimeError, match=r"\d samples kept of \d asked. Please report this"):
        manifest.write(store, CONFIG, WEIGHTS)
    assert store.read_json("manifest.json") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"scores__num_samples": 7},  # scored + quarantined is not the input
        {"selection__kept_by_class": {"0": 3, "2": 2}},  # classes keep more than the subset holds
        {"selection__reasons": {"hard": 3, "cluster": 1, "over_quota": 3}},  # a sample without a reason
        {"quarantine__reasons": {"not an image": 1}},  # a quarantined one without a reason
    ],
)
def test_counts_in_the_manifest_agree_with_each_other(tmp_path, changes):
    store = finished(tmp_path, **changes)
    with pytest.raises(RuntimeError, match="Please report this"):
        manifest.write(store, CONFIG, WEIGHTS)


def test_a_stage_that_has_not_committed(tmp_path):
    store = finished(tmp_path)
    store.discard("selection")
    with pytest.raises(AssertionError, match="selection has not committed"):
        manifest.write(store, CONFIG, WEIGHTS)
