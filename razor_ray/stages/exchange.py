"""Bring together rows that belong together: files are split by a key, the parts handed to the tasks that need them.

Plain tasks: on the scores of ImageNet they took two thirds of the time and half of the memory of Ray Data's
`groupby().map_groups`, and a class need not fit a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from razor_ray import schema
from razor_ray.heap import freed_memory_kept
from razor_ray.stages import runtime

_FILES_PER_TASK, _NARROW_FILES_PER_TASK = 16, 128
"""Files that a task splits, with embeddings (a megabyte each, say) and without. A task makes an object for each
partition, and on the scores of ImageNet the objects, not the bytes, were most of the time."""

_TEXT_BYTES = 32
_ROWS_PER_PARTITION = 2**22
"""Of a few numbers each: some hundred megabytes while they are sorted."""

OBJECT_BYTES = 2**19
"""Of an object, on average, where there are many. Those below some 100 KB Ray keeps not in its store but in the memory
of the driver, which then would hold all of the data."""
_FEW_BYTES = 2**28
"""So much may lie there, whatever the objects' size."""
_MOST_BYTES_PER_TASK = 2**29
"""That a task splits, and holds meanwhile."""


def scatter(
    files: Sequence[str],
    filesystem: pafs.FileSystem,
    columns: Sequence[str],
    partition: NDArray[np.int64],
    *,
    by: Literal["label", "shard"],
    num_bytes: int,
    where: pc.Expression | None = None,
) -> list[list[Any]]:
    """Split the rows of files by class, or by the shard that their samples come from.

    Parameters
    ----------
    files : sequence of str
        Parquet files with a column `label`, or `sample_id`.
    filesystem : FileSystem
    columns : sequence of str
        To keep; with that column.
    partition : ndarray of shape (K,)
        The partition of each class or shard, 0..P-1.
    by : {'label', 'shard'}
    num_bytes : int
        What the rows take of memory, about; see `row_bytes`.
    where : Expression, optional
        Of the files' columns: only rows for which it is true.

    Returns
    -------
    list of P lists of ObjectRef
        Tables; all rows of a class or shard are in its partition's, in the order of the files.
    """
    num_partitions = int(partition.max()) + 1
    most = _FILES_PER_TASK if "embedding" in columns else _NARROW_FILES_PER_TASK
    step = files_per_task(len(files), num_bytes, num_partitions, most, runtime.num_cpus())
    groups = [list(files[start : start + step]) for start in range(0, len(files), step)]
    task = ray.remote(_split).options(num_returns=num_partitions, name="exchange")
    shared = ray.put(partition)
    split_files: list[Any] = [
        task.remote(group, filesystem, list(columns), shared, num_partitions, by, where) for group in groups
    ]
    if num_partitions == 1:
        return [split_files]
    return [[parts[index] for parts in split_files] for index in range(num_partitions)]


def files_per_task(num_files: int, num_bytes: int, num_partitions: int, usual: int, num_cpus: int) -> int:
    """Files that a task splits: as many as usual, but fewer if else a CPU had none, and more if objects were small.

    Parameters
    ----------
    num_files, num_bytes : int
        Of all tasks.
    num_partitions : int
        Objects that each task makes.
    usual : int
    num_cpus : int

    Examples
    --------
    A few files go one by one; a thousand of a megabyte to 57 partitions by sixteen, and not by one, however many CPUs
    there are:

    >>> files_per_task(4, 4 * 2**20, 16, usual=16, num_cpus=8)
    1
    >>> files_per_task(1000, 1000 * 2**20, 4, usual=16, num_cpus=2), files_per_task(1000, 1000 * 2**20, 57, 16, 4096)
    (16, 29)
    """
    files = max(1, min(usual, num_files // num_cpus))
    if num_bytes > _FEW_BYTES:
        most_tasks = max(num_bytes // (OBJECT_BYTES * num_partitions), -(-num_bytes // _MOST_BYTES_PER_TASK))
        files = max(files, -(-num_files // most_tasks))
    return files


def row_bytes(columns: Sequence[str]) -> int:
    """Bytes of a row of these columns, about; not of embeddings."""
    return sum(_TEXT_BYTES if name in ("key", "place") else 8 for name in columns)


def num_partitions(num_things: int, num_rows: int, usual: int) -> int:
    """Partitions for the rows of some things (classes, shards), of which none is divided.

    As many as are usual, until they would hold more rows on average than a task has memory for; then with the data.

    Parameters
    ----------
    num_things, num_rows : int
    usual : int
        Enough for the CPUs, few enough that objects are not small.

    Examples
    --------
    >>> num_partitions(10, 50_000, usual=16), num_partitions(1000, 50_000, usual=16)
    (10, 16)
    >>> num_partitions(1000, 400_000_000, usual=16)
    96
    """
    return min(num_things, max(usual, -(-num_rows // _ROWS_PER_PARTITION)))


def even_partitions(sizes: NDArray[np.int64], num_partitions: int) -> NDArray[np.int64]:
    """Assign things to partitions so that the largest partition is small: largest first, to the emptiest.

    Parameters
    ----------
    sizes : ndarray of shape (K,)
    num_partitions : int

    Returns
    -------
    ndarray of shape (K,)
        In 0..num_partitions-1.

    Examples
    --------
    >>> even_partitions(np.array([5, 3, 3]), 2).tolist()
    [0, 1, 1]
    """
    partition = np.zeros(len(sizes), np.int64)
    filled = np.zeros(num_partitions, np.int64)
    for index in np.argsort(-sizes, kind="stable"):
        partition[index] = filled.argmin()
        filled[partition[index]] += sizes[index]
    return partition


@freed_memory_kept()
def _split(
    files: list[str],
    filesystem: pafs.FileSystem,
    columns: list[str],
    partition: NDArray[np.int64],
    num_partitions: int,
    by: str,
    where: pc.Expression | None,
) -> list[pa.Table] | pa.Table:
    read = (pq.read_table(file, columns=columns, filesystem=filesystem, filters=where) for file in files)
    table = pa.concat_tables(list(read))
    if num_partitions == 1:
        return table
    keys = table["label"].to_numpy() if by == "label" else schema.shard_ids(table["sample_id"].to_numpy())
    of_row = partition[keys]  # (N,)
    order = np.argsort(of_row, kind="stable")  # (N,)
    bounds = np.searchsorted(of_row[order], np.arange(num_partitions + 1))
    # Taken one by one: a slice would carry the whole table's buffers into the object store.
    return [table.take(pa.array(order[low:high])) for low, high in pairwise(bounds.tolist())]
