"""scores -> weights/: the distributed reduce, a row per class.

The losses are split by class over tasks that keep them sorted. A sorted sum does not depend on how the scores were
cut into files, and the loss at a quantile is found exactly, by counting, without bringing the losses together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from razor_ray import schema, weights
from razor_ray.config import TrainedFor, WeighConfig
from razor_ray.progress import stage
from razor_ray.run_store import RunStore, write_table
from razor_ray.selection import RULE
from razor_ray.stages import exchange, runtime
from razor_ray.weights import IsplSettings, quantile_place
from razor_ray.window import passes

_CLASSES_PER_PARTITION, _USUAL_PARTITIONS = 8, 16
_HALF_BITS = 16  # the bits of a float32 are counted in two halves


@dataclass(frozen=True, slots=True)
class Weights:
    """The committed weights: a row per class, and how samples are weighed inside it."""

    table: pa.Table
    """Of `schema.WEIGHTS`, by label."""
    ispl: IsplSettings
    contradicted_fraction: float
    """Share of all samples for which the proxy prefers another class."""


@dataclass(frozen=True, slots=True)
class _ClassLosses:
    """What a task keeps of a class."""

    loss: NDArray[np.float32]
    """(n_c,), ascending."""
    num_correct: int
    num_contradicted: int


def weigh(
    store: RunStore,
    class_names: tuple[str, ...],
    config: WeighConfig,
    keep_fraction: float,
    *,
    trained_for: TrainedFor,
    threshold: float | None = None,
    earlier: Sequence[dict[str, float]] = (),
) -> None:
    """Weigh the committed scores, and commit the stage `weights`.

    Parameters
    ----------
    store : RunStore
    class_names : tuple of str
    config : WeighConfig
    keep_fraction : float
    trained_for : 'epochs' or 'steps'
        As many of which as everything would be. For the rounds of a proxy, which learns of all samples, 'epochs'.
    threshold : float, optional
        The ISPL threshold in nats; without it the configured quantile of the losses.
    earlier : sequence of dict
        Effective counts of the classes, by label, in earlier rounds, as they committed them: classes are weighed by
        the mean over all rounds, since the low threshold of the last one makes them all alike.

    Raises
    ------
    ValueError
        If the budget cannot be met; the message names the floor or cap in the way.
    """
    with stage("weigh", len(class_names), "classes") as progress:
        num_classes = len(class_names)
        usual = min(-(-num_classes // _CLASSES_PER_PARTITION), _USUAL_PARTITIONS)
        num_samples = store.commit_facts("scores")["num_samples"]
        partitions = exchange.num_partitions(num_classes, num_samples, usual)
        files = store.files("scores")
        margin = schema.average_margin(pq.read_schema(files[0], filesystem=store.filesystem).names)
        # Dealt out in an order of no meaning: what is large may recur at even steps.
        partition_of_label = np.random.default_rng(0).permutation(num_classes) % partitions
        columns = ["label", "loss", "correct", margin]
        num_bytes = num_samples * exchange.row_bytes(columns)
        split = exchange.scatter(files, store.filesystem, columns, partition_of_label, by="label", num_bytes=num_bytes)
        gather = ray.remote(_gather).options(name="gather losses")
        held = [gather.remote(*tables) for tables in split]
        ispl = IsplSettings.of(config, threshold or _exact_quantile(held, config.quantile))
        by_class: dict[int, dict[str, Any]] = {}
        for _, found in runtime.run_tasks(_class_mass, ((ref, ispl) for ref in held), name="weigh"):
            by_class |= found
            progress.advance(len(found))
        facts_of_classes = {str(label): found["effective_count"] for label, found in sorted(by_class.items())}
        for label, found in by_class.items():
            counts = [*(counts[str(label)] for counts in earlier), found["effective_count"]]
            found["effective_count"] = math.fsum(counts) / len(counts)
        table, facts = _weights_table(class_names, by_class, config, keep_fraction, trained_for)
        progress.note = f"{facts['budget']:,} of {facts['num_samples']:,} samples to keep"
    folder = store.begin("weights")
    write_table(store.filesystem, f"{folder}/weights.parquet", table)
    store.commit("weights", facts | {"ispl": asdict(ispl), "effective_count": facts_of_classes})


def threshold_of_round(first: dict[str, Any], config: WeighConfig, number: int) -> float:
    """The ISPL threshold of a round, from 1 on: that of the first, whose committed facts these are, fallen since."""
    return first["ispl"]["threshold"] * config.round_decay ** (number - 1)


def read(store: RunStore) -> Weights:
    """The committed weights."""
    table, facts = schema.check(store.read("weights"), schema.WEIGHTS, "weights"), store.commit_facts("weights")
    return Weights(table, IsplSettings(**facts["ispl"]), facts["contradicted_fraction"])


def _gather(*tables: pa.Table) -> dict[int, _ClassLosses]:
    table = pa.concat_tables(tables)
    label, loss = table["label"].to_numpy(), table["loss"].to_numpy()
    correct = table["correct"].to_numpy(zero_copy_only=False)
    is_ahead = table[schema.average_margin(table.column_names)].to_numpy() > 0  # (N,) another class is
    order = np.lexsort((loss, label))  # (N,)
    label, loss, correct, is_ahead = label[order], loss[order], correct[order], is_ahead[order]
    if not len(label):
        return {}  # a partition none of whose classes has a sample
    present, starts = np.unique(label, return_index=True)
    stops = [*starts[1:].tolist(), len(label)]
    return {
        int(value): _ClassLosses(loss[start:stop], int(correct[start:stop].sum()), int(is_ahead[start:stop].sum()))
        for value, start, stop in zip(present, starts.tolist(), stops, strict=True)
    }


def _exact_quantile(held: list[Any], quantile: float) -> float:
    """The loss at a quantile of all losses, as `weights.loss_quantile` defines it.

    The bits of a non-negative float32 are in the order of its value, so counting the upper halves finds the upper half
    of the wanted one, and counting the lower halves among its fellows finds the rest: two small sums.
    """
    upper = _sum_counts(held, None)
    num_samples = int(upper.sum())
    if not num_samples:
        raise ValueError("no sample was scored: all of them are in quarantine/, which says why.")
    wanted = quantile_place(num_samples, quantile)
    high = int(np.searchsorted(np.cumsum(upper), wanted, side="right"))
    lower = _sum_counts(held, high)
    before = int(upper[:high].sum())
    low = int(np.searchsorted(np.cumsum(lower), wanted - before, side="right"))
    found = float(np.array((high << _HALF_BITS) | low, np.uint32).view(np.float32))
    return found if found > 0 else _smallest_positive(held)


def _smallest_positive(held: list[Any]) -> float:
    """Most losses are exactly 0: a threshold of 0 would make every weight 0 or undefined."""
    found = [value for _, value in runtime.run_tasks(_smallest_of, ((ref,) for ref in held), name="smallest loss")]
    positive = [value for value in found if value > 0]
    return min(positive, default=weights.loss_quantile([0.0], 0.5))


def _smallest_of(classes: dict[int, _ClassLosses]) -> float:
    positive = [float(held.loss[held.loss > 0][0]) for held in classes.values() if held.loss[-1] > 0]
    return min(positive, default=0.0)


def _sum_counts(held: list[Any], upper: int | None) -> NDArray[np.int64]:
    total = np.zeros(2**_HALF_BITS, np.int64)
    for _, counts in runtime.run_tasks(_count_halves, ((ref, upper) for ref in held), name="count losses"):
        total += counts
    return total


def _count_halves(classes: dict[int, _ClassLosses], upper: int | None) -> NDArray[np.int64]:
    """Counts of the upper halves of the losses' bits, or of the lower halves of those with a given upper half."""
    total = np.zeros(2**_HALF_BITS, np.int64)
    for held in classes.values():
        bits = held.loss.view(np.uint32)
        halves = bits >> _HALF_BITS if upper is None else bits[bits >> _HALF_BITS == upper] & (2**_HALF_BITS - 1)
        total += np.bincount(halves, minlength=2**_HALF_BITS)
    return total


def _class_mass(classes: dict[int, _ClassLosses], ispl: IsplSettings) -> dict[int, dict[str, Any]]:
    return {
        label: {
            "num_samples": len(held.loss),
            "effective_count": float(ispl.weigh(held.loss).sum()),
            "recall": held.num_correct / len(held.loss),
            "num_contradicted": held.num_contradicted,
        }
        for label, held in classes.items()
    }


def _weights_table(
    class_names: tuple[str, ...],
    by_class: dict[int, dict[str, Any]],
    config: WeighConfig,
    keep_fraction: float,
    trained_for: TrainedFor,
) -> tuple[pa.Table, dict[str, Any]]:
    labels = sorted(by_class)
    num_samples = np.array([by_class[label]["num_samples"] for label in labels], np.int64)  # (C,)
    effective_count = np.array([by_class[label]["effective_count"] for label in labels])  # (C,)
    recall = np.array([by_class[label]["recall"] for label in labels])  # (C,)
    budget = weights.budget(int(num_samples.sum()), keep_fraction)
    shares = weights.class_shares(
        num_samples=num_samples,
        effective_count=effective_count,
        recall=recall,
        budget=budget,
        config=config,
        passes=passes(budget / int(num_samples.sum()), trained_for),
    )
    columns = {
        "label": labels,
        "class_name": [class_names[label] for label in labels],
        "num_samples": num_samples,
        "num_effective": weights.effective_number(np.maximum(effective_count, 1.0), shares.beta),
        "class_weight": shares.class_weight,
        "quota": shares.quota,
    }
    facts = {
        "budget": budget,
        "num_samples": int(num_samples.sum()),
        "beta": float(shares.beta),
        "rule": RULE,
        "contradicted_fraction": sum(by_class[label]["num_contradicted"] for label in labels) / int(num_samples.sum()),
    }
    return schema.table(columns, schema.WEIGHTS, "weights"), facts
