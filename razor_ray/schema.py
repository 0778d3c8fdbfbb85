"""The Arrow schema of every table that passes between stages, and the identity of a sample.

The names of columns are written in this file only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

CATALOG = pa.schema(
    [
        pa.field("shard_id", pa.int32(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("num_samples", pa.int64(), nullable=False),
        pa.field("group_rows", pa.list_(pa.int64()), nullable=False),
        pa.field("group_offsets", pa.list_(pa.int64()), nullable=False),
    ]
)
"""A row per shard. `path` is relative to the input; `group_rows` and `group_offsets` are where the shard can be
entered, as `shards.ShardFacts` has them."""

READ = pa.schema(
    [
        pa.field("image", pa.binary()),
        pa.field("image_path", pa.string()),
        pa.field("label", pa.string()),
        pa.field("key", pa.string()),
        pa.field("place", pa.string(), nullable=False),
        pa.field("problem", pa.string()),
    ]
)
"""A row per sample as an input's shard is read, whatever the format; labels of Parquet may also be integers. `image`
is encoded, `image_path` its file's name if it has one, `key` the sample's name, `place` what the quarantine calls its
path, `problem` why it cannot be used, if reading tells. With `weight` if that is asked for."""

READ_IMAGE = pa.schema([READ.field("image"), READ.field("image_path")])
"""A row per image as the subset is copied."""

QUARANTINE = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""A row per sample that could not be used, and why."""

WEIGHTS = pa.schema(
    [
        pa.field("label", pa.int32(), nullable=False),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("num_samples", pa.int64(), nullable=False),
        pa.field("num_effective", pa.float64(), nullable=False),
        pa.field("class_weight", pa.float64(), nullable=False),
        pa.field("quota", pa.int64(), nullable=False),
    ]
)
"""A row per class that has samples."""

SELECTION = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("hardness", pa.float32(), nullable=False),
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("ispl_weight", pa.float32(), nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("reason", pa.dictionary(pa.int8(), pa.string()), nullable=False),
    ]
)
"""A row per scored sample, kept or not."""

SCORE_NAMES = ("loss", "el2n", "margin", "entropy")
"""Float columns of `scores/`; higher = harder."""

IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""An encoded image as Hugging Face `datasets` stores it."""


SUBSET = pa.schema(
    [
        pa.field("sample_id", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("image", IMAGE),
        pa.field("label", pa.int64()),
        pa.field("weight", pa.float32()),
    ]
)
"""A row per kept image. Labels are the integers of the run; `labels.hugging_face_metadata` names them. None is null,
but Hugging Face `datasets` takes a column for an image or a class only if its field may be."""


DYNAMICS_NAMES = ("mean_el2n", "mean_p", "dyn_unc", "dual", "aum", "forgetting")
"""Float columns that `scores/` has too if the proxy was trained in the run: of the epochs of that training. Higher =
harder, but for `mean_p`."""


def average_margin(columns: Collection[str]) -> str:
    """The column of `scores/` that says how far another class is ahead: over the epochs, or else in one pass."""
    return "aum" if "aum" in columns else "margin"


def scores(embedding_size: int, *, with_dynamics: bool = False, num_rounds: int = 0) -> pa.Schema:
    """Schema of `scores/`: a row per sample that was scored. `predicted` is the class that the proxy takes it for.

    Parameters
    ----------
    embedding_size : int
        Numbers of an embedding, in float16.
    with_dynamics : bool
        With the scores over the epochs of a proxy that was trained in the run.
    num_rounds : int
        With the losses of so many ISPL rounds.
    """
    return pa.schema(
        [
            pa.field("sample_id", pa.int64(), nullable=False),
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.int32(), nullable=False),
            *(pa.field(name, pa.float32(), nullable=False) for name in SCORE_NAMES),
            pa.field("correct", pa.bool_(), nullable=False),
            pa.field("predicted", pa.int32(), nullable=False),
            *(pa.field(name, pa.float32(), nullable=False) for name in (DYNAMICS_NAMES if with_dynamics else ())),
            *([pa.field("round_loss", pa.list_(pa.float32(), num_rounds), nullable=False)] if num_rounds else []),
            pa.field("embedding", pa.list_(pa.float16(), embedding_size), nullable=False),
        ]
    )


def table(columns: Mapping[str, Any], schema: pa.Schema, what: str) -> pa.Table:
    """Columns by name, arrays or lists, as a table that `check` has looked at."""
    return check(pa.table(dict(columns), schema=schema), schema, what)


def check(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """The table, if its columns, types and order are those of `schema` and no required value is null.

    Raises
    ------
    ValueError
        Naming the first column that differs.
    """
    if not table.schema.equals(schema):
        for expected, got in zip(schema, table.schema, strict=False):
            if not expected.equals(got):
                raise ValueError(f"{what}: expected column {expected}, got {got}.")
        raise ValueError(f"{what}: expected columns {schema.names}, got {table.schema.names}.")
    for expected in schema:
        if not expected.nullable and table[expected.name].null_count:
            raise ValueError(f"{what}: column {expected.name} holds {table[expected.name].null_count} nulls.")
    return table


ROW_BITS = 32
"""A shard holds at most 2^32 rows."""


def sample_ids(shard_id: int, first_row: int, num_rows: int) -> NDArray[np.int64]:
    """Identities of consecutive rows of a shard, ``shard_id << 32 | row``.

    >>> sample_ids(1, 5, 2).tolist()
    [4294967301, 4294967302]
    """
    assert 0 <= shard_id < 2**31 and 0 <= first_row <= first_row + num_rows <= 2**ROW_BITS
    return (np.int64(shard_id) << ROW_BITS) + np.arange(first_row, first_row + num_rows, dtype=np.int64)


def piece_name(shard_id: int, first_row: int) -> str:
    """How the files of a piece of a shard begin in `scores/` and `quarantine/`.

    >>> piece_name(3, 512)
    'part-000003-0000000512'
    """
    return f"part-{shard_id:06d}-{first_row:010d}"


def shard_name(shard_id: int) -> str:
    """Of the file in `subset/` with what is kept of a shard.

    >>> shard_name(3)
    'part-000003.parquet'
    """
    return f"part-{shard_id:06d}.parquet"


def first_id(file_name: str) -> int:
    """The identity of the first sample of a piece, by the name of its file.

    >>> first_id("part-000003-0000000512-0123456789ab.parquet") == (3 << 32) + 512
    True
    """
    shard_id, first_row = (int(number) for number in file_name.split("-")[1:3])
    return (shard_id << ROW_BITS) + first_row


def shard_ids(sample_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shard of each sample.

    >>> shard_ids(np.array([4294967301])).tolist()
    [1]
    """
    return sample_id >> ROW_BITS


def rows(sample_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of each sample in its shard.

    >>> rows(np.array([4294967301])).tolist()
    [5]
    """
    return sample_id & (2**ROW_BITS - 1)
