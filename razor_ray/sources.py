"""What an input is: Parquet files, what they hold, and how to read a piece of one.

A shard is one file. It is read by pieces: a run of consecutive rows, whole row groups where they are not too large.
Pieces are a function of the file and of the model's batch, never of the cluster; that is what makes a score the same
wherever it is computed. A piece is also the grain at which scoring is parallel and commits its work.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from razor_ray import headers
from razor_ray.config import InputConfig
from razor_ray.run_store import open_filesystem

LabelKind = Literal["integer", "string"]

_WILDCARDS = "*?["
_NUM_PROBED_IMAGES = 8
_ROWS_READ_AT_ONCE = 500


class InputError(ValueError):
    """The input is not there, cannot be read, or is not what the configuration says; the message names the mend."""


@dataclass(frozen=True, slots=True)
class Source:
    """An input that was found: its files, under one base folder."""

    filesystem: pafs.FileSystem
    base: str
    """Path of the folder that the shards' paths are relative to."""
    paths: tuple[str, ...]
    """Relative paths of the shards, sorted; a shard's id is its place here."""
    sizes: tuple[int, ...]
    """In bytes."""


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What one shard's metadata and label column say."""

    num_samples: int
    fingerprint: str
    label_kind: LabelKind
    label_counts: dict[Any, int]
    """Samples of each value of the label column; None for nulls."""
    class_names: tuple[str, ...] | None
    image_dimensions: tuple[tuple[int, int], ...]
    """Height and width of a few images."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of one shard."""

    shard_id: int
    path: str
    first_row: int
    num_rows: int


def find(config: InputConfig) -> Source:
    """List the shards of an input: a Parquet file, a folder (with its subfolders) or a glob.

    Raises
    ------
    InputError
        If nothing is there. Names that begin with '_' or '.' are no data, as in every Parquet reader.
    """
    try:
        filesystem, path = open_filesystem(config.path)
    except ValueError as error:
        raise InputError(str(error)) from error
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound and any(character in path for character in _WILDCARDS):
        return _find_glob(config.path, filesystem, path)
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"there is no {config.path}. --input takes a Parquet file, a folder or a glob.")
    if info.type == pafs.FileType.File:
        return Source(filesystem, path.rpartition("/")[0], (info.base_name,), (info.size or 0,))
    found = [info for info in _files(filesystem, path) if info.path.endswith(".parquet")]
    if not found:
        raise InputError(f"{config.path} holds no .parquet file. --input takes a Parquet file, a folder or a glob.")
    return _source(filesystem, path, found)


def inspect(source: Source, shard: int, config: InputConfig) -> ShardFacts:
    """Read a shard's footer, its label column and the headers of a few images.

    Raises
    ------
    InputError
        If the file is no Parquet, a column is missing or of another type; the message names the shard.
    """
    path = source.paths[shard]
    try:
        with pq.ParquetFile(f"{source.base}/{path}", filesystem=source.filesystem) as file:
            kind = _check_columns(file.schema_arrow, path, config)
            labels = file.read(columns=[config.label_column])[config.label_column] if file.metadata.num_rows else None
            return ShardFacts(
                num_samples=file.metadata.num_rows,
                fingerprint=_fingerprint(source, shard, labels),
                label_kind=kind,
                label_counts=_count(labels),
                class_names=class_names_in_metadata(file.schema_arrow, config.label_column),
                image_dimensions=_probe_images(file, config.image_column),
            )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"shard {path} cannot be read: {error}. Repair it, or move it out of the input.") from error


def check_column(source: Source, column: str, mend: str) -> None:
    """Raise InputError, ending in how to mend it, unless the shards have a column of this name."""
    for path in source.paths:
        names = pq.read_schema(f"{source.base}/{path}", filesystem=source.filesystem).names
        if column not in names:
            raise InputError(f"shard {path} has no column {column!r} (it has: {', '.join(names)}). {mend}")


def plan_pieces(row_groups: Sequence[int], max_rows: int, batch_size: int) -> list[tuple[int, int]]:
    """Cut a shard into pieces along its row groups.

    Small row groups are joined up to `max_rows`; one that is larger is cut evenly, at multiples of the batch, so that
    no batch of the model is smaller than it must be.

    Parameters
    ----------
    row_groups : sequence of int
        Rows of each row group.
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
    for rows in row_groups:
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


def row_groups(source: Source, shard: int) -> list[int]:
    """Rows of each row group of a shard."""
    with pq.ParquetFile(f"{source.base}/{source.paths[shard]}", filesystem=source.filesystem) as file:
        return [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]


def read_piece(source: Source, piece: Piece, columns: Sequence[str]) -> pa.Table:
    """The rows of a piece, as one table with these columns."""
    end = piece.first_row + piece.num_rows
    tables, start = [], 0
    with pq.ParquetFile(f"{source.base}/{piece.path}", filesystem=source.filesystem) as file:
        for index in range(file.num_row_groups):
            stop = start + file.metadata.row_group(index).num_rows
            if start < end and piece.first_row < stop:
                for first, batch in _batches(file, index, start, columns):
                    if first >= end:
                        break  # nothing of a large row group is decoded in vain behind the piece
                    skip = max(piece.first_row - first, 0)
                    tables.append(pa.table(batch.slice(skip, max(min(end - first, batch.num_rows) - skip, 0))))
            start = stop
    table = pa.concat_tables(tables)
    assert table.num_rows == piece.num_rows
    return table


def read_rows(source: Source, shard: int, rows: NDArray[np.int64], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some rows of a shard, in ascending order, some hundreds at a time.

    Parameters
    ----------
    rows : ndarray of shape (K,), ascending
    """
    start = 0
    with pq.ParquetFile(f"{source.base}/{source.paths[shard]}", filesystem=source.filesystem) as file:
        for index in range(file.num_row_groups):
            stop = start + file.metadata.row_group(index).num_rows
            if np.searchsorted(rows, start) < np.searchsorted(rows, stop):
                for first, batch in _batches(file, index, start, columns):
                    low, high = np.searchsorted(rows, [first, first + batch.num_rows])
                    if low < high:
                        yield pa.table(batch).take(pa.array(rows[low:high] - first))
            start = stop


def _batches(
    file: pq.ParquetFile, row_group: int, start: int, columns: Sequence[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """A row group that begins with row `start`, by batches and their first rows: it may be larger than memory."""
    for batch in file.iter_batches(
        _ROWS_READ_AT_ONCE, row_groups=[row_group], columns=list(columns), use_threads=False
    ):
        yield start, batch
        start += batch.num_rows


def image_bytes(column: pa.ChunkedArray) -> list[bytes | None]:
    """Encoded images of a column of bytes, or of Hugging Face structs {bytes, path}."""
    if pa.types.is_struct(column.type):
        column = _field(column, "bytes")
    return column.to_pylist()


def image_paths(column: pa.ChunkedArray) -> list[str | None]:
    """The paths in Hugging Face structs {bytes, path}; None for images that are plain bytes."""
    if pa.types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
        return _field(column, "path").to_pylist()
    return [None] * len(column)


def encode_labels(
    column: pa.ChunkedArray, kind: LabelKind, class_names: Sequence[str]
) -> tuple[NDArray[np.int32], list[str | None]]:
    """Labels as integers 0..C-1.

    Parameters
    ----------
    column : ChunkedArray of length B
        Integers or strings.
    kind : 'integer' or 'string'
    class_names : sequence of C str

    Returns
    -------
    labels : ndarray of shape (B,), int32
        -1 where there is none.
    reasons : list of B str or None
        Why there is none.
    """
    if kind == "string":
        index = {name: label for label, name in enumerate(class_names)}
        values = column.cast(pa.string()).to_pylist()
        labels = np.array([index.get(value, -1) for value in values], np.int32)  # (B,)
        nulls = [value is None for value in values]
    else:
        filled = pc.fill_null(column.cast(pa.int64(), safe=False), -1).to_numpy()  # (B,)
        labels = np.where((filled >= 0) & (filled < len(class_names)), filled, -1).astype(np.int32)
        nulls = column.is_null().to_pylist()
    reasons = [
        None if label >= 0 else "label is null" if null else "label is not one of the classes"
        for label, null in zip(labels.tolist(), nulls, strict=True)
    ]
    return labels, reasons


def resolve_class_names(
    given: tuple[str, ...] | None, in_metadata: tuple[str, ...] | None, kind: LabelKind, counts: Counter[Any]
) -> tuple[str, ...]:
    """Names of the classes 0..C-1: as given, else as the metadata says, else from the labels themselves.

    Parameters
    ----------
    given, in_metadata : tuple of str or None
    kind : 'integer' or 'string'
    counts : Counter
        Samples of each value of the label column, null included.

    Raises
    ------
    InputError
        If there are fewer than two classes, or the integers are no labels.
    """
    values = [value for value in counts if value is not None]
    if given or in_metadata:
        names = given or in_metadata or ()
    elif kind == "string":
        names = tuple(sorted(values))
    else:
        labels = [value for value in values if value >= 0]
        num_classes = max(labels, default=-1) + 1
        if num_classes > 10 * len(labels) + 1000:
            raise InputError(
                f"labels go up to {num_classes - 1} but only {len(labels)} differ: these do not look like classes "
                "0..C-1. Name the classes with --input.class-names, or choose another --input.label-column."
            )
        names = tuple(str(label) for label in range(num_classes))
    if len(names) < 2:
        raise InputError(
            f"{len(names)} class found ({', '.join(names) or 'every label is null or negative'}); hardness needs at "
            "least two. Check --input.label-column, or name all classes with --input.class-names."
        )
    if kind == "string" and not set(values) & set(names):
        raise InputError(
            f"no label is among the class names ({', '.join(names[:5])}, ...); labels are "
            f"{', '.join(map(str, sorted(values)[:5]))}, ... Check --input.class-names."
        )
    return names


def class_names_in_metadata(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    """Class names in Hugging Face feature metadata, or as JSON under the schema's metadata key `class_names`."""
    metadata = schema.metadata or {}
    try:
        if b"huggingface" in metadata:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            if names := features.get(label_column, {}).get("names"):
                return tuple(map(str, names))
        if b"class_names" in metadata and isinstance(names := json.loads(metadata[b"class_names"]), list):
            return tuple(map(str, names))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # metadata of another meaning; the labels themselves will tell
    return None


def hugging_face_metadata(class_names: Sequence[str]) -> dict[bytes, bytes]:
    """Schema metadata by which Hugging Face `datasets` reads a subset's images as images and its labels by name."""
    features = {
        "sample_id": {"dtype": "int64", "_type": "Value"},
        "key": {"dtype": "string", "_type": "Value"},
        "image": {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
        "weight": {"dtype": "float32", "_type": "Value"},
    }
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()} | class_names_metadata(class_names)


def class_names_metadata(class_names: Sequence[str]) -> dict[bytes, bytes]:
    """Schema metadata that names the classes 0..C-1 of a label column."""
    return {b"class_names": json.dumps(list(class_names)).encode()}


def _field(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """One field of a column of structs; null where the struct is."""
    return pc.call_function("struct_field", [column], pc.StructFieldOptions([column.type.get_field_index(name)]))


def _source(filesystem: pafs.FileSystem, base: str, infos: list[pafs.FileInfo]) -> Source:
    base = base.rstrip("/")
    by_path = sorted((info.path[len(base) + 1 :], info.size or 0) for info in infos)
    return Source(filesystem, base, tuple(path for path, _ in by_path), tuple(size for _, size in by_path))


def _find_glob(given: str, filesystem: pafs.FileSystem, pattern: str) -> Source:
    first = min(pattern.index(character) for character in _WILDCARDS if character in pattern)
    base = pattern[:first].rpartition("/")[0]
    if isinstance(filesystem, pafs.LocalFileSystem):
        infos = [filesystem.get_file_info(path) for path in glob.glob(pattern, recursive=True)]
        found = _files_once(filesystem, infos, base)
    else:
        expression = _glob_expression(pattern)
        found = [info for info in _files(filesystem, base) if expression.fullmatch(info.path)]
    if not found:
        raise InputError(f"no file matches {given}. Quote the glob, so that the shell does not expand it.")
    return _source(filesystem, base, found)


def _glob_expression(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression: '**/' is any number of folders, '*' and '?' stay inside a name."""
    wild = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return re.compile("".join(wild.get(part) or _one_of(part) for part in parts))


def _one_of(part: str) -> str:
    if not part.startswith("["):
        return re.escape(part)
    members = part[1:-1]
    negation = "^" if members.startswith("!") else ""
    escaped = members.removeprefix("!").replace("\\", r"\\").replace("^", r"\^").replace("[", r"\[")
    return f"[{negation}{escaped}]"


def _files(filesystem: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """Files in a folder and its subfolders, each once: links may lead to one place by several ways, or in a circle."""
    selector = pafs.FileSelector(folder, recursive=True, allow_not_found=True)
    return _files_once(filesystem, filesystem.get_file_info(selector), folder)


def _files_once(filesystem: pafs.FileSystem, infos: list[pafs.FileInfo], folder: str) -> list[pafs.FileInfo]:
    prefix = len(folder.rstrip("/")) + 1
    found: dict[str, pafs.FileInfo] = {}
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    for info in sorted(infos, key=lambda info: (info.path.count("/"), info.path)):
        if info.type == pafs.FileType.File and not _is_hidden(info.path[prefix:]):
            found.setdefault(os.path.realpath(info.path) if is_local else info.path, info)
    return list(found.values())


def _is_hidden(path: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.split("/"))


def _check_columns(schema: pa.Schema, path: str, config: InputConfig) -> LabelKind:
    wanted = {"image": config.image_column, "label": config.label_column}
    if config.id_column:
        wanted["id"] = config.id_column
    for role, name in wanted.items():
        if schema.get_field_index(name) < 0:
            raise InputError(
                f"shard {path} has no column {name!r} (it has: {', '.join(schema.names)}). "
                f"Name it with --input.{role}-column."
            )
    image = schema.field(config.image_column).type
    if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
        image = image.field("bytes").type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise InputError(
            f"shard {path}: column {config.image_column!r} is {image}, not bytes or a struct {{bytes, path}}. "
            "Name the column of encoded images with --input.image-column."
        )
    if config.id_column and not _is_id(kind := schema.field(config.id_column).type):
        raise InputError(
            f"shard {path}: column {config.id_column!r} is {kind}, not integers or strings. "
            "Name the column that names the samples with --input.id-column."
        )
    label = schema.field(config.label_column).type
    if pa.types.is_dictionary(label):
        label = label.value_type
    if pa.types.is_integer(label):
        return "integer"
    if pa.types.is_string(label) or pa.types.is_large_string(label):
        return "string"
    raise InputError(
        f"shard {path}: column {config.label_column!r} is {label}, not integers or strings. "
        "Name the column of labels with --input.label-column."
    )


def _is_id(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _count(labels: pa.ChunkedArray | None) -> dict[Any, int]:
    if labels is None:
        return {}
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    return {entry["values"]: entry["counts"] for entry in pc.call_function("value_counts", [labels]).to_pylist()}


def _fingerprint(source: Source, shard: int, labels: pa.ChunkedArray | None) -> str:
    """Hash of a file's size, of its footer (offsets, sizes and statistics of every column chunk) and of its labels.

    Images that were swapped for others of the same size, with the same statistics, go unseen.
    """
    with source.filesystem.open_input_file(f"{source.base}/{source.paths[shard]}") as file:
        size = file.size()
        file.seek(size - 8)
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(size - 8 - length, 0))
        digest = hashlib.blake2b(file.read(length), digest_size=16)
    digest.update(size.to_bytes(8, "little"))
    if labels is not None:
        stream = pa.BufferOutputStream()
        table = pa.table({"label": labels}).combine_chunks()
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        digest.update(stream.getvalue())
    return digest.hexdigest()


def _probe_images(file: pq.ParquetFile, column: str) -> tuple[tuple[int, int], ...]:
    dimensions = []
    if file.metadata.num_rows:
        batch = next(file.iter_batches(batch_size=_NUM_PROBED_IMAGES, columns=[column]))
        for content in image_bytes(pa.chunked_array([batch.column(0)])):
            try:
                dimensions.append(headers.dimensions(content or b""))
            except headers.ImageError:
                continue  # the scoring pass will quarantine it
    return tuple(dimensions)
