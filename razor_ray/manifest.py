"""manifest.json: what went into a run and what came out, with counts that must add up."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import pyarrow as pa

import razor_ray
from razor_ray import config as configuration
from razor_ray.run_store import COST, MANIFEST, RunStore

_STAGES = ("catalog", "proxy", "scores", "weights", "selection", "subset")
_REPORT = "Please report this with the run's folder."
_PACKAGES = ("ray", "torch", "torchvision", "pyarrow", "numpy", "scikit-learn", "pillow", "simplejpeg")


def write(store: RunStore, config: configuration.PruneConfig, weights: pa.Table) -> dict[str, Any]:
    """Gather a finished run's facts, check that its counts reconcile, and write them.

    Raises
    ------
    RuntimeError
        If input = kept + dropped + quarantined does not hold, or the budget was missed: a fault of razor_ray.
    """
    facts = {stage: store.commit_facts(stage) for stage in (*_STAGES, "quarantine")}
    kept = facts["subset"]["num_samples"]
    counts = {
        "input": facts["catalog"]["num_samples"],
        "scored": facts["scores"]["num_samples"],
        "kept": kept,
        "dropped": facts["weights"]["num_samples"] - kept,
        "quarantined": facts["quarantine"]["num_samples"],
    }
    _check(facts, counts)
    costs = {stage: store.read_json(f"{stage}/{COST}") or {} for stage in _STAGES}
    manifest = {
        "razor_ray": razor_ray.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "seed": config.seed,
        "input": {
            "path": config.input.path,
            "fingerprint": facts["catalog"]["fingerprint"],
            "num_shards": facts["catalog"]["num_shards"],
        },
        "proxy": {name: value for name, value in facts["proxy"].items() if name != "rounds"},
        "scores": facts["scores"],
        "scores_from": config.scores_from or None,
        "budget": {
            "keep_fraction": config.keep_fraction,
            "asked": facts["weights"]["budget"],
            "met": kept,
        },
        "counts": counts,
        "quarantine": facts["quarantine"]["reasons"],
        "reasons": facts["selection"]["reasons"],
        "ispl": facts["weights"]["ispl"]
        | {
            "beta": facts["weights"]["beta"],
            "contradicted_fraction": facts["weights"]["contradicted_fraction"],
            "earlier_thresholds": [of_round["ispl"]["threshold"] for of_round in facts["proxy"].get("rounds", [])],
        },
        "window": facts["selection"]["window"],
        "notes": facts["selection"]["notes"],
        **_classes(facts, weights),
        "scoring_cost": {
            "epochs": scoring_epochs(facts["proxy"]),
            "full_epochs": config.full_epochs,
            "fraction": scoring_epochs(facts["proxy"]) / config.full_epochs,
        },
        "subset_bytes": facts["subset"]["num_bytes"],
        "seconds": {stage: cost.get("seconds") for stage, cost in costs.items()},
        "joules": {stage: cost.get("joules") for stage, cost in costs.items()},
    }
    store.write_json(MANIFEST, manifest)
    return manifest


def _classes(facts: dict[str, dict[str, Any]], weights: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """What was kept of each class, and the classes of which no sample could be used."""
    kept_by_class = facts["selection"]["kept_by_class"]
    classes = [
        {
            "label": row["label"],
            "name": row["class_name"],
            "num_samples": row["num_samples"],
            "quota": row["quota"],
            "kept": kept_by_class[str(row["label"])],
        }
        for row in weights.to_pylist()
    ]
    names, sizes = (facts["catalog"][name] for name in ("class_names", "class_sizes"))
    lost = [
        {"label": label, "name": name, "num_samples": size}
        for label, (name, size) in enumerate(zip(names, sizes, strict=True))
        if size and str(label) not in kept_by_class
    ]
    return {"classes": classes, "classes_lost": lost}


def scoring_epochs(proxy: dict[str, Any]) -> float:
    """What scoring cost, in epochs of training on everything.

    A forward pass is counted as a third of an epoch, which goes backward too: twice the work of going forward.

    Parameters
    ----------
    proxy : dict
        What the stage `proxy` committed.

    Examples
    --------
    >>> scoring_epochs({"trained": True, "metrics": {"epoch": 8}, "rounds": [{}]})
    8.666666666666666
    """
    trained = proxy["metrics"]["epoch"] if proxy["trained"] else 0
    return trained + (1 + len(proxy.get("rounds", ()))) / 3


def _check(facts: dict[str, dict[str, Any]], counts: dict[str, int]) -> None:
    """Counts that were made apart from each other must agree."""
    budget = facts["weights"]["budget"]
    if counts["kept"] != budget:
        raise RuntimeError(f"{counts['kept']} samples kept of {budget} asked. {_REPORT}")
    sums = {
        "kept, dropped and quarantined": (counts["kept"] + counts["dropped"] + counts["quarantined"], counts["input"]),
        "scored and quarantined": (counts["scored"] + counts["quarantined"], counts["input"]),
        "kept of the classes": (sum(facts["selection"]["kept_by_class"].values()), counts["kept"]),
        "reasons of the selection": (sum(facts["selection"]["reasons"].values()), counts["scored"]),
        "reasons of the quarantine": (sum(facts["quarantine"]["reasons"].values()), counts["quarantined"]),
    }
    for name, (found, expected) in sums.items():
        if found != expected:
            raise RuntimeError(f"samples were lost: {name} are {found}, not {expected} ({counts}). {_REPORT}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
