"""What the workers of the proxy's training saw of each sample -> one file of scores for each shard.

A worker has its samples from everywhere; scoring goes shard by shard, and finds here what to put beside its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from razor_ray import dynamics, schema
from razor_ray.dynamics import Dynamics
from razor_ray.run_store import RunStore, write_table
from razor_ray.stages import exchange, runtime
from razor_ray.stages.catalog import Catalog

_MAX_PARTITIONS = 64


def gather(catalog: Catalog, files: list[str], store: RunStore, folder: str) -> None:
    """Add up what the workers saw, and write the scores of each shard's samples.

    Parameters
    ----------
    catalog : Catalog
    files : list of str
        What the workers wrote, in the store's filesystem.
    store : RunStore
    folder : str
        In the store: gets `shard-<id>.parquet`, by sample id. Samples that no epoch saw are not in it.
    """
    sizes = np.array(catalog.table["num_samples"].to_pylist(), np.int64)  # (S,)
    partition = exchange.even_partitions(sizes, min(len(sizes), _MAX_PARTITIONS))
    columns = [field.name for field in dataclasses.fields(Dynamics)]
    store.discard(folder)
    store.filesystem.create_dir(store.path(folder), recursive=True)
    split = exchange.scatter_by_shard(files, store.filesystem, columns, partition)
    calls = ((store.filesystem, store.path(folder), *tables) for tables in split)
    for _ in runtime.run_tasks(_write_shards, calls, name="gather dynamics"):
        pass


def read_shard(filesystem: pafs.FileSystem, folder: str, shard_id: int) -> dict[str, NDArray[Any]]:
    """What `gather` wrote of a shard: `sample_id` (n,), ascending, and the columns of `schema.DYNAMICS_NAMES`."""
    path = _path(folder, shard_id)
    if filesystem.get_file_info(path).type == pafs.FileType.NotFound:  # none of its samples could be trained on
        return {name: np.zeros(0, np.float32) for name in schema.DYNAMICS_NAMES} | {"sample_id": np.zeros(0, np.int64)}
    table = pq.read_table(path, filesystem=filesystem)
    return {name: table[name].to_numpy() for name in table.column_names}


def _write_shards(filesystem: pafs.FileSystem, folder: str, *tables: pa.Table) -> None:
    parts = [Dynamics(**{name: np.array(table[name]) for name in table.column_names}) for table in tables]
    merged = dynamics.merge(parts)
    columns = {"sample_id": merged.sample_id} | merged.scores()
    shards = schema.shard_ids(merged.sample_id)  # ascending, as the ids are
    for shard_id in np.unique(shards):
        rows = slice(*np.searchsorted(shards, [shard_id, shard_id + 1]))
        table = pa.table({name: values[rows] for name, values in columns.items()})
        write_table(filesystem, _path(folder, int(shard_id)), table)


def _path(folder: str, shard_id: int) -> str:
    return f"{folder}/shard-{shard_id:06d}.parquet"
