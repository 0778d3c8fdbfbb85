"""scores, weights of a round -> what each sample weighs in the next round of the proxy's training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from razor_ray.run_store import RunStore, write_table
from razor_ray.stages import exchange, per_shard, runtime
from razor_ray.stages.catalog import Catalog
from razor_ray.stages.weigh import Weights

WEIGHT, LOSS = "weight", "loss"
"""The columns that `write` writes."""

_USUAL_PARTITIONS = 64


def write(catalog: Catalog, weights: Weights, round_store: RunStore) -> None:
    """Weigh every sample of a round by its class's weight times its ISPL weight, and commit the stage `ispl`.

    Parameters
    ----------
    catalog : Catalog
    weights : Weights
        The round's.
    round_store : RunStore
        With the round's scores. Gets `ispl/`, a file for each shard, for `per_shard.PerShard`.
    """
    filesystem = round_store.filesystem
    labels, num_samples = weights.table["label"].to_numpy(), weights.table["num_samples"].to_numpy()  # (C,), (C,)
    partition = np.zeros(int(labels.max()) + 1, np.int64)
    partitions = exchange.num_partitions(len(labels), int(num_samples.sum()), _USUAL_PARTITIONS)
    partition[labels] = exchange.even_partitions(num_samples, partitions)
    columns = ["sample_id", "label", "loss"]
    num_bytes = int(num_samples.sum()) * exchange.row_bytes(columns)
    files = round_store.files("scores")
    split = exchange.scatter(files, filesystem, columns, partition, by="label", num_bytes=num_bytes)
    by_class = round_store.begin("ispl_by_class")
    files = [f"{by_class}/part-{index:05d}.parquet" for index in range(len(split))]
    calls = ((filesystem, file, weights, *tables) for file, tables in zip(files, split, strict=True))
    for _ in runtime.run_tasks(_weigh_classes, calls, name="weigh samples"):
        pass
    per_shard.write(catalog, files, ["sample_id", WEIGHT, LOSS], _combine, round_store, "ispl")
    round_store.drop("ispl_by_class")
    round_store.seal("ispl", {})


def _weigh_classes(filesystem: pafs.FileSystem, path: str, weights: Weights, *tables: pa.Table) -> None:
    table = pa.concat_tables(tables)
    label, loss = table["label"].to_numpy(), table["loss"].to_numpy()
    weight = np.zeros(len(label), np.float32)
    for row in weights.table.to_pylist():
        rows = np.flatnonzero(label == row["label"])
        weight[rows] = row["class_weight"] * weights.ispl.weigh(loss[rows])
    write_table(filesystem, path, pa.table({"sample_id": table["sample_id"], WEIGHT: weight, LOSS: table["loss"]}))


def _combine(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).sort_by("sample_id").combine_chunks()
