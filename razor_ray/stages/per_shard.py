"""Values that belong to samples, in a file for each shard: written by a reduce, looked up by whoever reads the shard.

What is known of samples comes class by class or worker by worker; images are read shard by shard. Here the one is put
into the order of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from razor_ray import schema
from razor_ray.run_store import RunStore, write_table
from razor_ray.stages import exchange, runtime
from razor_ray.stages.catalog import Catalog

_USUAL_PARTITIONS = 64

Combine = Callable[[Sequence[pa.Table]], pa.Table]
"""From the rows of some shards to one table with `sample_id`, ascending, each once."""


def write(
    catalog: Catalog, files: list[str], columns: Sequence[str], combine: Combine, store: RunStore, folder: str
) -> None:
    """Sort the rows of files into a file for each shard.

    Parameters
    ----------
    catalog : Catalog
    files : list of str
        Parquet with `sample_id`, in the store's filesystem.
    columns : sequence of str
        To read of the files.
    combine : callable
        Runs in a task, on all rows of some shards.
    store : RunStore
    folder : str
        In the store; what was there is deleted.
    """
    sizes = np.array(catalog.table["num_samples"].to_pylist(), np.int64)  # (S,)
    partitions = exchange.num_partitions(len(sizes), catalog.num_samples, _USUAL_PARTITIONS)
    partition = exchange.even_partitions(sizes, partitions)
    store.discard(folder)
    store.filesystem.create_dir(store.path(folder), recursive=True)
    num_bytes = catalog.num_samples * exchange.row_bytes(columns)
    split = exchange.scatter(files, store.filesystem, columns, partition, by="shard", num_bytes=num_bytes)
    calls = ((combine, store.filesystem, store.path(folder), *tables) for tables in split)
    for _ in runtime.run_tasks(_write_shards, calls, name="sort by shard"):
        pass


class PerShard:
    """Reads what `write` wrote. Keeps the shard that was asked for last.

    Parameters
    ----------
    filesystem : FileSystem
    folder : str
        In the filesystem.
    """

    def __init__(self, filesystem: pafs.FileSystem, folder: str) -> None:
        self.filesystem, self.folder = filesystem, folder
        self._shard_id = -1
        self._columns: dict[str, NDArray[np.generic]] = {}

    def look_up(
        self, sample_id: NDArray[np.int64], names: Sequence[str]
    ) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.float32]]]:
        """Values of samples of one shard.

        Parameters
        ----------
        sample_id : ndarray of shape (B,)
            At least one.
        names : sequence of str

        Returns
        -------
        (ndarray of shape (B,), dict of ndarray of shape (B,))
            Which samples are there, and their values; 0 for those that are not.
        """
        self._read(int(schema.shard_ids(sample_id[:1])[0]))
        known = self._columns.get("sample_id", np.zeros(0, np.int64))
        is_there = np.zeros(len(sample_id), bool)
        values = {name: np.zeros(len(sample_id), np.float32) for name in names}
        if len(known):
            at = np.minimum(np.searchsorted(known, sample_id), len(known) - 1)  # (B,)
            is_there = known[at] == sample_id
            for name in names:
                values[name][is_there] = self._columns[name][at[is_there]]
        return is_there, values

    def _read(self, shard_id: int) -> None:
        if shard_id == self._shard_id:
            return
        path = _path(self.folder, shard_id)
        self._shard_id, self._columns = shard_id, {}
        if self.filesystem.get_file_info(path).type != pafs.FileType.NotFound:  # nothing is known of its samples
            table = pq.read_table(path, filesystem=self.filesystem)
            self._columns = {name: table[name].to_numpy() for name in table.column_names}


def _write_shards(combine: Combine, filesystem: pafs.FileSystem, folder: str, *tables: pa.Table) -> None:
    table = combine(tables)
    shards = schema.shard_ids(table["sample_id"].to_numpy())  # ascending, as the ids are
    for shard_id in np.unique(shards).tolist():
        low, high = np.searchsorted(shards, [shard_id, shard_id + 1]).tolist()
        write_table(filesystem, _path(folder, shard_id), table.slice(low, high - low))


def _path(folder: str, shard_id: int) -> str:
    return f"{folder}/shard-{shard_id:06d}.parquet"
