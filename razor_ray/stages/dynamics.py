"""What the workers of the proxy's training saw of each sample -> scores in the order of the shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from razor_ray import dynamics
from razor_ray.dynamics import Dynamics
from razor_ray.run_store import RunStore
from razor_ray.stages import per_shard
from razor_ray.stages.catalog import Catalog


def gather(catalog: Catalog, files: list[str], store: RunStore, folder: str) -> None:
    """Add up what the workers saw, and write the scores of each shard's samples for `per_shard.PerShard`.

    Parameters
    ----------
    catalog : Catalog
    files : list of str
        What the workers wrote, in the store's filesystem.
    store : RunStore
    folder : str
        In the store. Samples that no epoch saw are not in it.
    """
    columns = [field.name for field in dataclasses.fields(Dynamics)]
    per_shard.write(catalog, files, columns, _combine, store, folder)


def to_table(found: Dynamics) -> pa.Table:
    """As a worker writes it."""
    return pa.table({field.name: getattr(found, field.name) for field in dataclasses.fields(Dynamics)})


def from_table(table: pa.Table) -> Dynamics:
    """The inverse of `to_table`."""
    return Dynamics(**{name: np.array(table[name]) for name in table.column_names})


def _combine(tables: Sequence[pa.Table]) -> pa.Table:
    merged = dynamics.merge(from_table(table) for table in tables)
    return pa.table({"sample_id": merged.sample_id} | merged.scores())
