"""What a shard and a piece of one are, whatever the format, and how a shard is cut into pieces.

A shard is one file, or a run of files of class folders. It is read by pieces: consecutive rows, along the groups at
which the format can be entered. Pieces are a function of the shard and of the model's batch, never of the cluster; that
is what makes a score the same wherever it is computed. A piece is also the grain at which scoring is parallel and
commits its work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow.fs as pafs

from razor_ray import headers

Format = Literal["parquet", "webdataset", "folders"]
LabelKind = Literal["integer", "string"]


class InputError(ValueError):
    """The input is not there, cannot be read, or is not what the configuration says; the message names the mend."""


@contextmanager
def told_of(option: str) -> Iterator[None]:
    """Have what is wrong with another input than `--input` name the options that mend it."""
    try:
        yield
    except ValueError as error:
        cause = getattr(error, "cause", error)  # Ray wraps the errors of its tasks
        if not isinstance(cause, InputError):
            raise
        # Classes are those that are trained on: of held-out images only the column may be another.
        text = str(cause).replace("Check --input.class-names", f"Check {option}.label-column")
        raise InputError(text.replace("--input", option)) from error


@dataclass(frozen=True, slots=True)
class Source:
    """An input that was found: its shards, under one base folder."""

    filesystem: pafs.FileSystem
    base: str
    """Path of the folder that the shards' paths are relative to."""
    paths: tuple[str, ...]
    """Relative paths of the shards, sorted; a shard's id is its place here. Of class folders: which run of files."""
    sizes: tuple[int, ...]
    """In bytes."""
    format: Format = "parquet"
    mtimes_ns: tuple[int, ...] = ()
    """When each was written last, in nanoseconds since 1970, 0 where the filesystem does not tell. Not of class
    folders."""
    fingerprints: tuple[str, ...] = ()
    """Of class folders: a hash of the names and sizes in each run. Its size alone would not tell that a file moved."""
    class_folders: tuple[str, ...] = ()
    """Of class folders: their names, sorted, so that who reads a run lists no others."""
    left_alone: str = ""
    """Of class folders: what else lies in them, in words."""

    def path(self, shard: int) -> str:
        """The shard's file in the filesystem."""
        return f"{self.base}/{self.paths[shard]}"


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What one look at a shard's structure and labels says."""

    num_samples: int
    fingerprint: str
    label_kind: LabelKind | Literal["text"] | None
    """'text' is how tars hold them: whether they are integers only all shards together tell. None if there is none."""
    label_counts: dict[Any, int]
    """Samples of each label; None for those that have none."""
    class_names: tuple[str, ...] | None
    image_dimensions: tuple[tuple[int, int], ...]
    """Height and width of a few images."""
    group_rows: tuple[int, ...]
    """Rows of the groups at which the shard can be entered: row groups of Parquet, runs of samples in a tar."""
    group_offsets: tuple[int, ...] = ()
    """Byte at which each group begins, where only this look finds it (tars); else empty."""
    problems: dict[str, int] = field(default_factory=dict)
    """Samples that are known by now to be unusable, by reason: of images those that were looked at."""


def check_batch_bytes(num_bytes: int, num_images: int, where: str) -> None:
    """Raise InputError if the encoded images of a batch are more than memory is meant to hold."""
    if num_bytes > headers.MAX_BATCH_BYTES:
        raise InputError(
            f"{where}: a batch of {num_images} images is {num_bytes / 2**30:.1f} GiB, more than "
            f"{headers.MAX_BATCH_BYTES / 2**30:g} GiB. Make them smaller, or move the shard out of the input."
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of one shard."""

    shard_id: int
    path: str
    first_row: int
    num_rows: int
    offset: int = 0
    """Byte of the shard at which the first row begins, in formats that do not find it themselves (tars)."""


def cut(
    shard: int, path: str, group_rows: Sequence[int], group_offsets: Sequence[int], max_rows: int, batch_size: int
) -> list[Piece]:
    """The pieces of a shard.

    Parameters
    ----------
    shard : int
    path : str
    group_rows, group_offsets : sequence of int
        As `ShardFacts` has them.
    max_rows, batch_size : int
        As for `plan_pieces`. Groups that have offsets can be entered nowhere else and stay whole.
    """
    starts, first = {}, 0
    for rows, offset in zip(group_rows, group_offsets, strict=False):
        starts[first] = offset
        first += rows
    limit = max(max_rows, *group_rows) if group_offsets else max_rows
    planned = plan_pieces(group_rows, limit, batch_size)
    return [Piece(shard, path, first, rows, starts.get(first, 0)) for first, rows in planned]


def plan_pieces(group_rows: Sequence[int], max_rows: int, batch_size: int) -> list[tuple[int, int]]:
    """Cut a shard into pieces along its groups.

    Small groups are joined up to `max_rows`; one that is larger is cut evenly, at multiples of the batch, so that
    no batch of the model is smaller than it must be.

    Parameters
    ----------
    group_rows : sequence of int
        Rows of each group.
    max_rows : int
        Rows of a piece, unless a batch is larger.
    batch_size : int
        Of the model.

    Returns
    -------
    list of (first_row, num_rows)
        In order; together all rows, none twice.

    Examples
    --------
    >>> plan_pieces([100, 100, 100], max_rows=200, batch_size=64)
    [(0, 200), (200, 100)]
    >>> plan_pieces([1000], max_rows=600, batch_size=128)
    [(0, 512), (512, 488)]
    """
    max_rows = max(max_rows, batch_size)
    pieces: list[tuple[int, int]] = []
    first = joined = 0
    for rows in group_rows:
        if joined and joined + rows > max_rows:
            pieces.append((first, joined))
            first, joined = first + joined, 0
        if rows > max_rows:
            parts = -(-rows // (max_rows // batch_size * batch_size))
            step = -(-rows // (parts * batch_size)) * batch_size
            pieces += [(first + start, min(step, rows - start)) for start in range(0, rows, step)]
            first += rows
        else:
            joined += rows
    if joined:
        pieces.append((first, joined))
    return pieces
