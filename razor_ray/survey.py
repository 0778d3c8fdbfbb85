"""What a report shows of a run: counts of the selection, and the few samples at its edges, with their images.

The selection is streamed and only counted. Images are read of the samples that are shown: those that were kept from the
subset, those that were set aside from the input.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from razor_ray import charts, parquet_shards, schema, sources
from razor_ray.config import InputConfig
from razor_ray.progress import sign_of_life
from razor_ray.run_store import RunStore

_BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Survey:
    """What the report tells of the selection; samples are dictionaries of `sample_id, key, label, hardness`."""

    histogram: charts.Histogram
    hardest_kept: list[dict[str, Any]]
    easiest_kept: list[dict[str, Any]]
    hardest_noise: list[dict[str, Any]]


_SAMPLE = pa.schema([schema.SELECTION.field(name) for name in ("sample_id", "key", "label", "hardness")])


def look(store: RunStore, num_shown: int, num_noise: int) -> Survey:
    """Read a committed selection.

    Parameters
    ----------
    store : RunStore
    num_shown : int
        Samples of each list but the last.
    num_noise : int
        Samples of the last.
    """
    hardness = (batch["hardness"].to_numpy() for batch in _selection(store, ["hardness"]))
    ranges = [(values.min(), values.max()) for values in hardness]
    edges = charts.histogram_edges(float(np.min(ranges)), float(np.max(ranges)))
    counts = np.zeros((2, len(edges) - 1), np.int64)
    hardest_kept = easiest_kept = hardest_noise = _SAMPLE.empty_table()
    for batch in _selection(store, [*_SAMPLE.names, "keep", "reason"]):
        keep = batch["keep"].to_numpy(zero_copy_only=False)
        counts += charts.hardness_histogram(batch["hardness"].to_numpy(), keep, edges)
        kept = batch.filter(pc.field("keep")).select(_SAMPLE.names)
        noise = batch.filter(pc.field("reason").cast(pa.string()) == "noise").select(_SAMPLE.names)
        hardest_kept = _extreme([hardest_kept, kept], "descending", num_shown)
        # Twice as many, since a small subset's easiest are also among its hardest, and are shown once.
        easiest_kept = _extreme([easiest_kept, kept], "ascending", 2 * num_shown)
        hardest_noise = _extreme([hardest_noise, noise], "descending", num_noise)
    hardest = hardest_kept.to_pylist()
    easiest = [sample for sample in easiest_kept.to_pylist() if sample not in hardest][:num_shown]
    return Survey(charts.Histogram(edges, counts), hardest, easiest, hardest_noise.to_pylist())


def _selection(store: RunStore, columns: list[str]) -> Iterator[pa.Table]:
    """The selection in batches, so that memory does not grow with a file."""
    for path in store.files("selection"):
        with pq.ParquetFile(path, filesystem=store.filesystem) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                sign_of_life()
                yield pa.Table.from_batches([batch]).combine_chunks()


def _extreme(tables: list[pa.Table], order: str, count: int) -> pa.Table:
    """The hardest or easiest rows; equal ones by sample_id, so that the order of files and batches does not tell."""
    ordered = pa.concat_tables(tables).sort_by([("hardness", order), ("sample_id", "ascending")])
    return ordered.slice(0, count)


def first_quarantined(store: RunStore, count: int) -> list[dict[str, Any]]:
    """The first rows of a committed quarantine, as dictionaries."""
    found: list[dict[str, Any]] = []
    for path in store.files("quarantine"):
        with pq.ParquetFile(path, filesystem=store.filesystem) as file:
            for batch in file.iter_batches(count):
                found += batch.to_pylist()
                if len(found) >= count:
                    return found[:count]
    return found


def read_kept(store: RunStore, sample_id: list[int]) -> dict[int, bytes | None]:
    """The encoded images of some kept samples; of each file only the row groups that hold one are read."""
    found: dict[int, bytes | None] = {}
    for shard in sorted({identity >> schema.ROW_BITS for identity in sample_id}):
        wanted = [identity for identity in sample_id if identity >> schema.ROW_BITS == shard]
        # The subset has a file per shard, with samples in order of their identity.
        with pq.ParquetFile(store.path("subset", schema.shard_name(shard)), filesystem=store.filesystem) as file:
            column = file.schema_arrow.names.index("sample_id")
            for group in range(file.num_row_groups):
                limits = file.metadata.row_group(group).column(column).statistics
                if any(limits.min <= identity <= limits.max for identity in wanted):
                    table = file.read_row_group(group, columns=["sample_id", "image"])
                    table = table.filter(pc.field("sample_id").isin(wanted))
                    content = parquet_shards.image_bytes(table["image"])
                    found |= zip(table["sample_id"].to_pylist(), content, strict=True)
    return found


def read_input(source: sources.Source, given: InputConfig, sample_id: list[int]) -> dict[int, bytes | None]:
    """The encoded images of some samples that the subset does not hold; without those that cannot be read any more."""
    found: dict[int, bytes | None] = {}
    for shard in sorted({identity >> schema.ROW_BITS for identity in sample_id}):
        wanted = np.sort([identity for identity in sample_id if identity >> schema.ROW_BITS == shard])
        with suppress(OSError, ValueError):  # the run is finished: a picture is no reason to fail
            sign_of_life()
            parts = sources.read_images(source, shard, schema.rows(wanted), given)
            content = [image for part in parts for image in part["image"].to_pylist()]
            found |= zip(wanted.tolist(), content, strict=True)
    return found


def predicted_names(store: RunStore, sample_id: set[int], name_of: dict[int, str]) -> dict[int, str]:
    """Names of the classes that the proxy takes some samples for."""
    found: dict[int, str] = {}
    files = {schema.first_id(path.rpartition("/")[2]): path for path in store.files("scores")}
    firsts = sorted(files)  # a sample is in the last that begins before it
    for at in sorted({bisect.bisect(firsts, identity) - 1 for identity in sample_id}):
        with pq.ParquetFile(files[firsts[at]], filesystem=store.filesystem) as file:
            if "predicted" not in file.schema_arrow.names:
                continue  # taken from a run of an earlier version
            table = file.read(columns=["sample_id", "predicted"])
        table = table.filter(pc.field("sample_id").isin(sorted(sample_id)))
        predicted = [name_of.get(label, f"class {label}") for label in table["predicted"].to_pylist()]
        found |= zip(table["sample_id"].to_pylist(), predicted, strict=True)
    return found
