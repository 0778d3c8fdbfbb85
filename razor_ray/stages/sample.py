"""scores, weights -> selection/: the classes in parallel, each sampled on its own."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from razor_ray import sampling, schema
from razor_ray.config import PruneConfig, SampleConfig, WeighConfig
from razor_ray.heap import freed_memory_kept
from razor_ray.progress import say, stage
from razor_ray.run_store import RunStore, write_table
from razor_ray.selection import RULE
from razor_ray.stages import exchange, runtime
from razor_ray.stages.weigh import Weights
from razor_ray.window import Levels, Window, from_zero

_COLUMNS = ["sample_id", "key", "label", "loss", "margin", "embedding"]
_PARTITION_BYTES = 256 * 2**20
_MIN_PARTITIONS = 16
"""Partitions are a function of the scores, not of the cluster: small enough for memory, enough for a few CPUs."""
_FILES_COUNTED_AT_ONCE = 128
"""Of one column each."""
_BLUNT, _MOST_CONTRADICTED = 0.1, 0.6
"""A sharpness below the one, or a share of labels that the proxy contradicts above the other, is told of."""
_LITTLE = 0.2
"""A quota below this part of one in proportion to the class's size is told of."""
_TIMES_IN_MEMORY = 4
"""Of a partition, in its task: embeddings are stored in half precision, and beside that are twice as large."""


def sample(store: RunStore, weights: Weights, config: PruneConfig) -> None:
    """Choose which samples of each class are kept, and commit the stage `selection`.

    Raises
    ------
    ValueError
        If a class's embeddings or scores are not what sampling needs, or its quota is by another rule than this one's.
    """
    if store.commit_facts("weights").get("rule") != RULE:
        raise ValueError(
            f"the classes' quotas in {store.uri} are of another version of razor_ray. Choose another --output: with "
            f"--scores-from {store.uri} it need not score again."
        )
    labels, num_samples = weights.table["label"].to_numpy(), weights.table["num_samples"].to_numpy()  # (C,), (C,)
    partition_of_label = np.zeros(int(labels.max()) + 1, np.int64)
    num_bytes = sum(store.file_sizes("scores"))
    partition = exchange.even_partitions(num_samples, _num_partitions(num_bytes, len(labels)))  # (C,)
    partition_of_label[labels] = partition
    hardness = store.commit_facts("scores")["hardness"]
    columns = list(dict.fromkeys([*_COLUMNS, hardness]))
    split = exchange.scatter(
        store.files("scores"), store.filesystem, columns, partition_of_label, by="label", num_bytes=num_bytes
    )
    budget = int(weights.table["quota"].to_numpy().sum())
    keep_fraction = budget / int(num_samples.sum())
    window = Window.of(config.sample, keep_fraction, weights.contradicted_fraction)
    notes = [*_notes(config, keep_fraction, window, weights), *_starved(config.weigh, weights)]
    for note in notes:
        say(f"note      {note}")
    folder = store.begin("selection")
    shared = ray.put(weights), ray.put(_count_levels(store, hardness, int(num_samples.sum())))
    calls = (
        (store.filesystem, f"{folder}/part-{index:05d}.parquet", *shared, window, config, hardness, *tables)
        for index, tables in enumerate(split)
    )
    by_class: dict[int, dict[str, Any]] = {}
    share = np.bincount(partition, weights=num_samples) / num_samples.sum()  # (P,)
    memory = [_declared_memory(int(part * num_bytes)) for part in share.tolist()]
    with stage("sample", int(num_samples.sum())) as progress:
        for _, found in runtime.run_tasks(_sample_partition, calls, name="sample classes", memory=memory):
            by_class |= found
            progress.advance(sum(row["num_samples"] for row in found.values()))
        num_kept = sum(row["num_kept"] for row in by_class.values())
        num_alike = sum(row["num_alike"] for row in by_class.values())
        progress.note = f"{num_kept:,} kept, focus {window.focus:.2g}, γ {window.sharpness:.2g}"
    if num_alike:
        say(
            f"warning   {num_alike:,} samples have the id of another of their class: which of them is kept depends on "
            "their place in the input, and no list of ids tells them apart"
        )
    assert num_kept == budget, "the selection misses its budget"
    # In the order of the labels, so that the sum does not depend on which task ended first.
    total_weight = sum(by_class[label]["kept_weight"] for label in sorted(by_class))
    facts = {
        "num_kept": num_kept,
        "mean_kept_weight": total_weight / num_kept,
        "window": asdict(window),
        "notes": notes,
        "reasons": dict(sum((Counter(row["reasons"]) for row in by_class.values()), Counter())),
        "kept_by_class": {str(label): by_class[label]["num_kept"] for label in sorted(by_class)},
    }
    store.commit("selection", facts)


def _notes(config: PruneConfig, keep_fraction: float, window: Window, weights: Weights) -> Iterator[str]:
    """What about a choice is not as one may think."""
    settings, contradicted = config.sample, weights.contradicted_fraction
    if settings.gamma == "auto" and window.sharpness < _BLUNT:
        yield (
            f"the proxy contradicts {contradicted:.1%} of the labels, too few to say which samples are hard: what is "
            "kept of a class is nearly random over its clusters"
        )
    if settings.focus != "auto" and window.sharpness == 0:
        yield f"sample.focus {settings.focus} has no effect where γ is 0: all levels of hardness have one chance"
    usual = replace(settings, trained_for=SampleConfig().trained_for)
    has_own_quotas = config.weigh.quota == "ispl" and config.weigh.beta == "auto" and keep_fraction < 1
    has_own_window = window.sharpness > 0 and window != Window.of(usual, keep_fraction, contradicted)
    if settings != usual and not (has_own_quotas or has_own_window):
        yield f"sample.trained_for {settings.trained_for} keeps the same samples here as {usual.trained_for} would"
    if contradicted > _MOST_CONTRADICTED:
        yield (
            f"the proxy contradicts {contradicted:.1%} of the labels: what it finds hard says little. Train it for "
            "more epochs (--proxy.epochs) or bring one (--proxy.weights), unless labels are as wrong as that. One that "
            "is trained here is judged by all of its epochs together, not by the last"
        )
    if settings.tail != "auto":
        num_samples, quota = weights.table["num_samples"].to_numpy(), weights.table["quota"].to_numpy()  # (C,), (C,)
        is_drawn = (quota > 0) & (quota < num_samples)
        is_short = is_drawn & (sampling.tail_size(settings.tail, num_samples) > num_samples - quota)
        if is_short.any():
            yield (
                f"sample.tail {settings.tail} would leave fewer samples than are to be kept in {is_short.sum()} of "
                f"{len(quota)} classes: there less is set aside"
            )


def _starved(settings: WeighConfig, weights: Weights) -> Iterator[str]:
    """Classes of which ISPL leaves next to nothing, since they are so much easier than others."""
    if settings.quota != "ispl":
        return
    table = weights.table.select(["class_name", "num_samples", "quota"]).to_pylist()
    keep_fraction = sum(row["quota"] for row in table) / sum(row["num_samples"] for row in table)
    few = [row for row in table if row["quota"] < _LITTLE * keep_fraction * row["num_samples"]]
    if few:
        named = [f"{row['class_name']} ({row['quota']:,} of {row['num_samples']:,})" for row in few[:3]]
        yield (
            f"of {len(few)} of {len(table)} classes less than a fifth is kept of what their size would give: "
            f"{', '.join(named)}{', ...' if len(few) > 3 else ''}. They are easy beside the others, or very large; "
            "weigh.quota uniform or proportional, or a weigh.class_floor, leaves them more"
        )


def _count_levels(store: RunStore, hardness: str, num_samples: int) -> Levels:
    """Of a column of the committed scores."""
    files = store.files("scores")
    num_bytes = num_samples * exchange.row_bytes([hardness])
    step = exchange.files_per_task(len(files), num_bytes, 1, _FILES_COUNTED_AT_ONCE, runtime.num_cpus())
    calls = ((files[start : start + step], store.filesystem, hardness) for start in range(0, len(files), step))
    levels = Levels.counted(())
    for _, part in runtime.run_tasks(_levels_of, calls, name="count levels"):
        levels = Levels.merged([levels, part])
    return levels


def _levels_of(files: list[str], filesystem: pafs.FileSystem, hardness: str) -> Levels:
    tables = (pq.read_table(file, columns=[hardness], filesystem=filesystem) for file in files)
    return Levels.merged([Levels.counted(from_zero(table[hardness].to_numpy(), hardness)) for table in tables])


def random_ids(sample_id: NDArray[np.int64], keys: list[str], *, by_key: bool) -> NDArray[np.uint64]:
    """What the random choices about each sample are keyed by.

    Parameters
    ----------
    sample_id : ndarray of shape (n,)
    keys : list of n str
    by_key : bool
        Key by the user's own id, so that a choice survives a resharding of the input; else by the sample's place.

    Returns
    -------
    ndarray of shape (n,), uint64
    """
    if not by_key:
        return sample_id.astype(np.uint64)
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, "<u8")


def _num_partitions(num_bytes: int, num_classes: int) -> int:
    # As many as leave the exchange objects of a fair size: with as many tasks as partitions it makes their square.
    each = max(_PARTITION_BYTES, math.isqrt(num_bytes * exchange.OBJECT_BYTES))
    return min(num_classes, max(_MIN_PARTITIONS, -(-num_bytes // each)))


def _declared_memory(partition_bytes: int) -> int:
    """Of a task. A class is not divided: that of a very large one may need a node for itself."""
    usual = runtime.declared_memory(_TIMES_IN_MEMORY * _PARTITION_BYTES, {"CPU": 1})
    if partition_bytes <= _PARTITION_BYTES:
        return usual
    return max(usual, runtime.declared_memory(_TIMES_IN_MEMORY * partition_bytes, {"CPU": 1}, at_most=1))


@freed_memory_kept()
def _sample_partition(
    filesystem: pafs.FileSystem,
    path: str,
    weights: Weights,
    levels: Levels,
    window: Window,
    config: PruneConfig,
    hardness: str,
    *tables: pa.Table,
) -> dict[int, dict[str, Any]]:
    table = pa.concat_tables(tables).combine_chunks()
    label = table["label"].to_numpy()
    # By identity inside a class: whatever order the pieces came in, every sum is over the same rows in the same order.
    order = np.lexsort((table["sample_id"].to_numpy(), label))
    present, starts = np.unique(label[order], return_index=True)
    log_weight = window.log_weights(levels.of(from_zero(table[hardness].to_numpy(), hardness)))  # (N,)
    class_rows = {row["label"]: row for row in weights.table.to_pylist()}
    found: dict[int, dict[str, Any]] = {}
    selections = []
    for value, rows in zip(present.tolist(), np.split(order, starts[1:]), strict=True):
        selection = _sample_class(
            table.take(pa.array(rows)), log_weight[rows], class_rows[value], weights, config, hardness
        )
        selections.append(selection)
        kept = selection.filter(selection["keep"])
        found[value] = {
            "num_samples": selection.num_rows,
            "num_kept": kept.num_rows,
            "num_alike": selection.num_rows - len(selection["key"].unique()),
            "kept_weight": float(kept["ispl_weight"].to_numpy().astype(np.float64).sum()),
            "reasons": dict(Counter(selection["reason"].to_pylist())),
        }
    write_table(filesystem, path, schema.check(pa.concat_tables(selections), schema.SELECTION, "selection"))
    return found


def _sample_class(
    table: pa.Table,
    log_weight: NDArray[np.float64],
    row: dict[str, Any],
    weights: Weights,
    config: PruneConfig,
    hardness_name: str,
) -> pa.Table:
    sample_id, keys = table["sample_id"].to_numpy(), table["key"].to_pylist()  # (n,), n
    loss = table["loss"].to_numpy()  # (n,)
    (values,) = table["embedding"].chunks  # that `take` gave; combining would copy even one
    embedding = values.flatten().to_numpy().reshape(len(values), -1)  # (n, D)
    hardness = table[hardness_name].to_numpy()  # (n,)
    chosen = sampling.sample_class(
        hardness=hardness,
        log_weight=log_weight,
        embedding=embedding,
        ids=random_ids(sample_id, keys, by_key=config.input.id_column is not None),
        tie_break=sample_id,
        quota=row["quota"],
        seed=config.seed,
        label=row["label"],
        wrong_label_fraction=sampling.estimate_wrong_labels(loss, table["margin"].to_numpy()),
        floor_bound=row["quota"] <= min(config.weigh.class_floor, row["num_samples"]),
        settings=config.sample,
    )
    ispl_weight = row["class_weight"] * weights.ispl.weigh(loss)  # (n,)
    arrays = {
        "sample_id": table["sample_id"],
        "key": table["key"],
        "label": table["label"],
        "hardness": pa.array(hardness, pa.float32()),
        "cluster": pa.array(chosen.cluster, pa.int32()),
        "ispl_weight": pa.array(ispl_weight.astype(np.float32)),
        "keep": pa.array(chosen.keep),
        "rank": pa.array(chosen.rank, pa.int64()),
        "reason": pa.DictionaryArray.from_arrays(pa.array(chosen.reason, pa.int8()), list(sampling.REASONS)),
    }
    return pa.table(arrays, schema=schema.SELECTION)
