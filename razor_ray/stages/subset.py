"""catalog, selection -> subset/: the kept images as Parquet, byte for byte as they were, a file per shard.

On request also subset-tars/, the same as WebDataset, and subset_ids.txt; both are made from subset/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray

from razor_ray import labels, schema, sources, webdataset_shards, webdataset_writer
from razor_ray.progress import size_in_words, stage
from razor_ray.run_store import RunStore, aside, write_file
from razor_ray.stages import exchange, runtime
from razor_ray.stages.catalog import Catalog

_ROWS_PER_GROUP = 100
"""As Hugging Face's viewer and shuffled reading want it for images."""

_COMPRESSED = ("sample_id", "key", "label", "weight")
_USUAL_PARTITIONS = 64
_BYTES_PER_PARTITION = 2**35
"""Of the input. A task reads most of it, since of a row group of some hundred images one is kept as a rule."""

IDS = "subset_ids.txt"


def write_subset(catalog: Catalog, store: RunStore) -> None:
    """Copy the kept images, and commit the stage `subset`.

    Raises
    ------
    OSError
        If the disk is full, or a shard has gone.
    InputError
        If an image that is kept cannot be read any more.
    """
    facts = store.commit_facts("selection")
    num_shards = len(catalog.source.paths)
    usual = max(_USUAL_PARTITIONS, sum(catalog.source.sizes) // _BYTES_PER_PARTITION)
    partitions = exchange.num_partitions(num_shards, facts["num_kept"], usual)
    columns = ["sample_id", "key", "label", "ispl_weight"]
    split = exchange.scatter(
        store.files("selection"),
        store.filesystem,
        columns,
        exchange.even_partitions(np.array(catalog.table["num_samples"].to_pylist(), np.int64), partitions),
        by="shard",
        num_bytes=facts["num_kept"] * exchange.row_bytes(columns),
        where=pc.field("keep"),
    )
    folder, written = store.resume("subset", store.stamp("selection"))
    done, shared = ray.put(written), ray.put(catalog)
    calls = ((shared, store.filesystem, folder, facts["mean_kept_weight"], done, *tables) for tables in split)
    with stage("subset", facts["num_kept"]) as progress:
        num_bytes = 0
        for _, found in runtime.run_tasks(_write_shards, calls, name="write subset"):
            num_bytes += found["num_bytes"]
            if found["is_earlier"]:
                progress.skip(found["num_rows"])
            else:
                progress.advance(found["num_rows"], size_in_words(num_bytes))
        progress.note = size_in_words(num_bytes)
    assert progress.done == facts["num_kept"], "the subset holds other samples than the selection keeps"
    store.commit("subset", {"num_samples": progress.done, "num_bytes": num_bytes})


def write_tars(class_names: Sequence[str], store: RunStore) -> None:
    """Write the committed subset as WebDataset tars too, and commit the stage `subset-tars`.

    Labels are the integers of the run, as readers of .cls want them; `webdataset_shards.CLASS_NAMES` names them.
    """
    folder = store.begin("subset-tars")
    write_file(store.filesystem, f"{folder}/{webdataset_shards.CLASS_NAMES}", json.dumps(list(class_names)).encode())
    calls = ((store.filesystem, path, folder) for path in store.files("subset"))
    num_samples = store.commit_facts("subset")["num_samples"]
    with stage("tars", num_samples) as progress:
        num_tars = 0
        for _, counts in runtime.run_tasks(webdataset_writer.write_tars, calls, name="write tars"):
            num_tars += len(counts)
            progress.advance(sum(counts), f"{num_tars:,} written")
        progress.note = f"{num_tars:,} in {store.address('subset-tars')}"
    assert progress.done == num_samples, "the tars hold other samples than the subset"
    store.commit("subset-tars", {"num_samples": num_samples, "num_tars": num_tars})


def write_ids(store: RunStore) -> None:
    r"""Write the keys of the committed subset to subset_ids.txt: one in each line, in the order of the input.

    A line break inside a key is written as \n.
    """
    with stage("ids", store.commit_facts("subset")["num_samples"], "keys") as progress:
        path = store.path(IDS)
        with aside(store.filesystem, path) as target, store.filesystem.open_output_stream(target) as stream:
            for keys in _kept_keys(store):
                lines = [key.replace("\r", "\\r").replace("\n", "\\n") for key in keys]
                stream.write("".join(f"{line}\n" for line in lines).encode())
                progress.advance(len(keys))
        progress.note = store.address(IDS)


def _kept_keys(store: RunStore) -> Iterator[list[str]]:
    """Keys of the committed subset in the order of the input, some at a time."""
    for part in store.files("subset"):
        with pq.ParquetFile(part, filesystem=store.filesystem) as file:
            for batch in file.iter_batches(columns=["key"]):
                yield batch.column(0).to_pylist()


def _write_shards(
    catalog: Catalog,
    filesystem: pafs.FileSystem,
    folder: str,
    mean_weight: float,
    written: frozenset[str],
    *tables: pa.Table,
) -> Iterator[dict[str, Any]]:
    """Write some shards' files, and tell of each: a task of many, far away, must not seem to stand still."""
    kept = pa.concat_tables(tables).sort_by("sample_id")
    shards = schema.shard_ids(kept["sample_id"].to_numpy())  # (K,), ascending
    present, starts, counts = np.unique(shards, return_index=True, return_counts=True)
    for shard, start, count in zip(present.tolist(), starts.tolist(), counts.tolist(), strict=True):
        path = f"{folder}/{schema.shard_name(shard)}"
        is_earlier = schema.shard_name(shard) in written and _num_rows(filesystem, path) == count
        if not is_earlier:
            _write_shard(catalog, filesystem, path, shard, kept.slice(start, count), mean_weight)
        num_bytes = filesystem.get_file_info(path).size or 0
        yield {"num_rows": count, "num_bytes": num_bytes, "is_earlier": is_earlier}


def _num_rows(filesystem: pafs.FileSystem, path: str) -> int | None:
    """Of a Parquet file, by its footer; None if it has none, or is not there."""
    with suppress(pa.ArrowException, OSError):
        return pq.read_metadata(path, filesystem=filesystem).num_rows
    return None


def _write_shard(
    catalog: Catalog, filesystem: pafs.FileSystem, path: str, shard: int, kept: pa.Table, mean_weight: float
) -> None:
    metadata = labels.hugging_face_metadata(catalog.class_names)
    full_schema = schema.SUBSET.with_metadata(metadata)
    rows = schema.rows(kept["sample_id"].to_numpy())  # (K,)
    # Images are compressed already: zstd, dictionaries and statistics of their bytes would cost time and save nothing.
    with (
        aside(filesystem, path) as target,
        pq.ParquetWriter(
            target,
            full_schema,
            filesystem=filesystem,
            compression=dict.fromkeys(_COMPRESSED, "zstd"),  # pyright: ignore[reportArgumentType]
            use_dictionary=["label"],  # pyright: ignore[reportArgumentType]
            write_statistics=["sample_id", "label"],  # pyright: ignore[reportArgumentType]
        ) as writer,
    ):
        start = 0
        for group in sources.read_images(catalog.source, shard, rows, catalog.input):
            chosen = kept.slice(start, group.num_rows)
            start += group.num_rows
            if lost := group["image"].null_count:
                raise sources.InputError(
                    f"{lost} images that are kept of {catalog.source.paths[shard]} are not there any more. Put them "
                    "back as they were, and give the same command again."
                )
            table = _subset_table(group, chosen, mean_weight)
            writer.write_table(table.cast(full_schema), row_group_size=_ROWS_PER_GROUP)
    assert start == kept.num_rows, f"shard {catalog.source.paths[shard]} is shorter than it was"


def _subset_table(images: pa.Table, chosen: pa.Table, mean_weight: float) -> pa.Table:
    columns = [images[name].combine_chunks() for name in ("image", "image_path")]
    struct = pa.StructArray.from_arrays(columns, fields=list(schema.IMAGE))
    # A scheme can give every kept sample weight 0; an even weight says the same.
    weight = np.ones(chosen.num_rows)
    if mean_weight > 0:
        weight = chosen["ispl_weight"].to_numpy() / mean_weight
    label = chosen["label"].cast(pa.int64())
    arrays = [chosen["sample_id"], chosen["key"], struct, label, pa.array(weight, pa.float32())]
    return schema.check(pa.table(arrays, schema=schema.SUBSET), schema.SUBSET, "subset")
