"""Pieces of shards to decoded batches: the one path by which scoring and training read images."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from razor_ray import images, labels, schema, sources
from razor_ray.stages.catalog import Catalog, pieces

_PIECE_BYTES = 128 * 2**20
"""Decoded bytes of a piece: as large as Ray lets a block grow, so that a piece is one block wherever it is decoded."""

_MAX_PIECE_ROWS = 2048

_ROWS_TO_EXPLAIN = 64

_BATCHES_READ_AHEAD = 4
"""About a piece of photographs: a shard's column is read piece by piece."""

_IMAGES_PER_CALL = 8
"""Images that a decoding thread takes at once: few enough to share a batch evenly, enough to pay for the hand-over."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive rows of one shard, decoded. Rows that cannot be used keep their place, so that no other moves."""

    sample_id: NDArray[np.int64]
    """(B,)"""
    key: list[str]
    """B names: of the id column, or the row's place in the input."""
    label: NDArray[np.int32]
    """(B,), -1 where there is none."""
    pixels: NDArray[np.uint8]
    """(B, S, S, 3), zeros where there is no image."""
    place: list[str]
    """Where B rows come from, as the quarantine names it: the shard, or the image's own file."""
    reasons: list[str | None]
    """Why a row cannot be used, or None."""
    weight: NDArray[np.float32]
    """(B,), of the weight column if one is asked for, else 1."""


def piece_rows(size: int, batch_size: int) -> int:
    """Rows of a piece for square images of this side: about 128 MiB decoded, in whole batches.

    >>> piece_rows(224, 128), piece_rows(32, 128)
    (768, 2048)
    """
    rows = min(_PIECE_BYTES // (size * size * 3), _MAX_PIECE_ROWS)
    return max(rows // batch_size, 1) * batch_size


def decoded_batches(
    catalog: Catalog,
    piece: sources.Piece,
    size: int,
    batch_size: int,
    weight_column: str | None = None,
    out: NDArray[np.uint8] | None = None,
) -> Iterator[Batch]:
    """Read a piece and decode it in this thread, batch by batch.

    Parameters
    ----------
    catalog : Catalog
    piece : Piece
    size : int
        Side of the decoded images in pixels.
    batch_size : int
        Every batch but the piece's last has as many rows.
    weight_column : str, optional
        Read the samples' weights from this column.
    out : ndarray of shape (N, S, S, 3), uint8, optional
        Where to put the pixels of the piece's N rows.
    """
    for first, table in _encoded_batches(catalog, piece, batch_size, weight_column):
        place = None if out is None else out[first - piece.first_row :][: table.num_rows]
        encoded = table["image"].to_pylist()
        yield _batch(catalog, piece, table, first, *images.decode_batch(encoded, size, place))


def decoded_ahead(
    catalog: Catalog, pieces: Sequence[sources.Piece], size: int, batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[sources.Piece, Batch]]:
    """The same of several pieces, for a GPU, which is to wait neither for the store nor for a decoder.

    While it works on a batch the next one is decoded, and what follows that is read, of the next piece too.

    Parameters
    ----------
    catalog : Catalog
    pieces : sequence of Piece
    size, batch_size : int
        As for `decoded_batches`.
    pool : ThreadPoolExecutor
        Decodes. (The decoders release the interpreter's lock.)

    Yields
    ------
    (Piece, Batch)
        Each piece's batches, one piece after the other.
    """

    def decode(found: tuple[sources.Piece, int, pa.Table]) -> tuple[sources.Piece, Batch]:
        piece, first, table = found
        encoded = table["image"].to_pylist()
        chunks = [encoded[start : start + _IMAGES_PER_CALL] for start in range(0, len(encoded), _IMAGES_PER_CALL)]
        parts = list(pool.map(lambda chunk: images.decode_batch(chunk, size), chunks))
        pixels = np.concatenate([part[0] for part in parts])  # (B, S, S, 3)
        return piece, _batch(catalog, piece, table, first, pixels, [reason for part in parts for reason in part[1]])

    encoded = ((piece, *of) for piece in pieces for of in _encoded_batches(catalog, piece, batch_size))
    return _ahead(map(decode, _ahead(encoded, _BATCHES_READ_AHEAD)), 1)


def _ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """The same items, of which so many are asked for before they are needed, in a thread of their own."""
    thread = ThreadPoolExecutor(1)
    try:
        asked = deque(thread.submit(next, items, None) for _ in range(count))
        while (item := asked.popleft().result()) is not None:
            asked.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


def _encoded_batches(
    catalog: Catalog, piece: sources.Piece, batch_size: int, weight_column: str | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """A piece as it is read, batch by batch, and the first row of each."""
    tables = sources.read(catalog.source, piece, catalog.input, batch_size, weight_column)
    return zip(itertools.count(piece.first_row, batch_size), tables)


def in_words(input_format: str, place: str, sample_id: int) -> str:
    """Where a sample is, for a message: the row of its shard, or what the place names, its own file or member."""
    if input_format != "parquet":
        return place
    return f"row {sample_id & (2**schema.ROW_BITS - 1):,} of {place}"


def why_unusable(catalog: Catalog, sample_id: int, size: int) -> str:
    """Where a sample is, and what is wrong with it, for a message. Reads the piece that it is in."""
    shard, row = divmod(sample_id, 2**schema.ROW_BITS)
    for piece in pieces(catalog, max_rows=_ROWS_TO_EXPLAIN, batch_size=1):
        if piece.shard_id == shard and piece.first_row <= row < piece.first_row + piece.num_rows:
            for batch in decoded_batches(catalog, piece, size, _ROWS_TO_EXPLAIN):
                for identity, place, reason in zip(batch.sample_id.tolist(), batch.place, batch.reasons, strict=True):
                    if identity == sample_id:
                        return f"{in_words(catalog.source.format, place, sample_id)}: {reason}"
    raise AssertionError(f"the input has no sample {sample_id}")


def dataset(groups: Iterable[list[sources.Piece]]) -> ray.data.Dataset:
    """A Ray dataset with a block per group of pieces; what reads them follows as `map_batches`."""
    # Not `from_arrow`, which has a task look at every block before anything else can begin.
    return ray.data.from_blocks([pa.Table.from_pylist([dataclasses.asdict(piece) for piece in of]) for of in groups])


def pieces_of(batch: dict[str, Any]) -> list[sources.Piece]:
    """The pieces in a batch of `dataset`'s rows."""
    columns = [batch[field.name].tolist() for field in dataclasses.fields(sources.Piece)]
    return [sources.Piece(*row) for row in zip(*columns, strict=True)]


def _batch(
    catalog: Catalog,
    piece: sources.Piece,
    table: pa.Table,
    first_row: int,
    pixels: NDArray[np.uint8],
    image_reasons: list[str | None],
) -> Batch:
    """What was read, with the images decoded."""
    label, label_reasons = labels.encode_labels(table["label"], catalog.label_kind, catalog.class_names)
    keys = table["key"].to_pylist()
    key_reasons = ["id is null" if key is None else None for key in keys]
    problems = table["problem"].to_pylist()
    weight = np.ones(table.num_rows, np.float32)
    if "weight" in table.column_names:
        weight = table["weight"].to_numpy().astype(np.float32)  # (B,) NaN where it is null
    # One that is not finite would make every parameter NaN, with no other sign than the result.
    is_weight = (weight >= 0) & (weight < np.inf)  # (B,)
    weight_reasons = [None if is_one else "weight is not a number from 0 on" for is_one in is_weight.tolist()]
    reasons = [
        of_key or problem or of_label or of_weight or of_image
        for of_key, problem, of_label, of_weight, of_image in zip(
            key_reasons, problems, label_reasons, weight_reasons, image_reasons, strict=True
        )
    ]
    return Batch(
        sample_id=schema.sample_ids(piece.shard_id, first_row, table.num_rows),
        key=[key or "" for key in keys],
        label=label,
        pixels=pixels,
        place=table["place"].to_pylist(),
        reasons=reasons,
        weight=np.where(is_weight, weight, np.float32(1)),
    )
