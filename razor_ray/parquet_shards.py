"""A Parquet shard: its columns, its labels, and reading a run of its rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from razor_ray import headers, retry, schema
from razor_ray.config import InputConfig
from razor_ray.labels import class_names_in_metadata, is_text
from razor_ray.progress import sign_of_life
from razor_ray.shards import InputError, LabelKind, Piece, ShardFacts, Source

_ROWS_READ_AT_ONCE, _BYTES_DECODED_AT_ONCE = 500, 2**28
"""Of a row group, whichever is less. Arrow refuses a column of structs that takes 2 GiB in one batch."""
_LARGE_CHUNK_BYTES, _BYTES_READ_AT_ONCE = 2**25, 2**23
"""Of a column in a row group: more than a batch or two of photographs; and what a store gives in well above the time
that a request takes."""

_FOOTERS_AT_ONCE = 16

T = TypeVar("T")


def inspect(source: Source, shard: int, config: InputConfig) -> ShardFacts:
    """Read a shard's footer, its label column and the headers of a few images.

    Raises
    ------
    InputError
        If the file is no Parquet, a column is missing or of another type; the message names the shard.
    OSError
        If its store fails, and goes on failing.
    """
    path = source.paths[shard]

    def look(file: pq.ParquetFile) -> tuple[ShardFacts, pa.Buffer | None]:
        kind = _check_columns(file.schema_arrow, path, config)
        num_rows = file.metadata.num_rows
        labels = file.read(columns=[config.label_column])[config.label_column] if num_rows else None
        group_rows = _group_rows(file)
        if not num_rows == sum(group_rows) == (0 if labels is None else len(labels)):
            raise pa.ArrowInvalid("its footer and its pages have different numbers of rows")
        facts = ShardFacts(
            num_samples=num_rows,
            fingerprint="",
            label_kind=kind,
            label_counts=_count(labels),
            class_names=class_names_in_metadata(file.schema_arrow, config.label_column),
            image_dimensions=(),
            group_rows=group_rows,
        )
        return facts, None if labels is None else _as_stream(labels)

    try:
        facts, labels = _look(source, shard, look)
        # What opens the shard anew does so out here: `_look` sees no other store fail than that of its own handle.
        image_dimensions, problems = _probe_images(source, shard, config.image_column)
        return replace(
            facts,
            fingerprint=_fingerprint(source, shard, labels),
            image_dimensions=image_dimensions,
            problems=dict(problems),
        )
    except (_DamagedError, UnicodeDecodeError, FileNotFoundError, PermissionError) as error:
        raise InputError(
            f"shard {path} cannot be read: {str(error).rstrip('.')}. Repair it, or move it out of the input."
        ) from error


def check_columns(source: Source, config: InputConfig) -> None:
    """Raise InputError if the first shard has not the columns that are asked for. One that cannot be read is passed."""
    path = source.paths[0]
    with suppress(pa.ArrowInvalid, OSError):  # `inspect` says what of it
        _check_columns(pq.read_schema(source.path(0), filesystem=source.filesystem), path, config)


def check_numbers(source: Source, column: str, mend: str) -> None:
    """Raise InputError, ending in how to mend it, unless the shards have a column of numbers of this name."""

    def schema_of(shard: int) -> pa.Schema:
        return pq.read_schema(source.path(shard), filesystem=source.filesystem)

    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        for path, found in zip(source.paths, pool.map(schema_of, range(len(source.paths))), strict=True):
            sign_of_life()
            if column not in found.names:
                wrong = f"has no column {column!r} (it has: {', '.join(found.names)})"
            elif not (pa.types.is_floating(kind := found.field(column).type) or pa.types.is_integer(kind)):
                wrong = f"has {kind}, not numbers, in column {column!r}"
            else:
                continue
            pool.shutdown(wait=False, cancel_futures=True)
            raise InputError(f"shard {path} {wrong}. {mend}")


def read(
    source: Source, piece: Piece, config: InputConfig, batch_size: int, weight_column: str | None = None
) -> Iterator[pa.Table]:
    """The samples of a piece, a batch at a time, as `schema.READ` has them; a piece is in memory at once, encoded.

    Of a piece whose pages are damaged every sample has that as its problem: the rest of the input goes on without it.

    Raises
    ------
    InputError
        If the shard lacks rows or columns that it had when it was catalogued.
    OSError
        If its store fails, and goes on failing.
    """
    columns = [config.image_column, config.label_column]
    columns += [name for name in (config.id_column, weight_column) if name]
    try:
        table = _look(source, piece.shard_id, lambda file: _rows_of_piece(file, piece, columns))
    except _DamagedError:
        yield from _damaged(piece, batch_size, weight_column)
        return
    for start in range(0, table.num_rows, batch_size):
        batch = table.slice(start, batch_size)
        image = batch[config.image_column]
        places = [piece.path] * batch.num_rows
        keys, problems = _keys(batch, piece, piece.first_row + start, config)
        found = {
            "image": _encoded(image),
            "image_path": pa.array(image_paths(image), pa.string()),
            "label": batch[config.label_column],
            "key": pa.array(keys, pa.string()),
            "place": pa.array(places, pa.string()),
            "problem": pa.array(problems, pa.string()),
        }
        yield pa.table(found | ({"weight": batch[weight_column]} if weight_column else {}))


class _DamagedError(Exception):
    """A shard that its store gives, and that cannot be read."""


class _Witness:
    """A file that remembers what its store failed with: an error without one is of what the file holds."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close
        self.failed_with: OSError | None = None

    @property
    def closed(self) -> bool:
        return self._file.closed

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            self.failed_with = error
            raise


def _look(source: Source, shard: int, look: Callable[[pq.ParquetFile], T]) -> T:
    """What `look` finds in a shard.

    Arrow raises the same for both, so an error is believed only from a second handle that saw the store give all bytes.

    Raises
    ------
    _DamagedError
        If the shard is damaged.
    OSError
        If the store fails twice.
    """
    try:
        with open_file(source.path(shard), source.filesystem) as file:
            return look(file)
    except MemoryError:  # which Arrow's is, and an ArrowException too
        raise
    except (pa.ArrowException, OSError):
        pass
    with _opened_again(source, shard) as file:
        return look(file)


@contextmanager
def _opened_again(source: Source, shard: int) -> Iterator[pq.ParquetFile]:
    """A second handle of a shard, that tells errors in the block apart, as `_look` says."""
    with source.filesystem.open_input_file(source.path(shard)) as raw:
        witness = _Witness(raw)
        try:
            with open_file(witness) as file:
                yield file
        except MemoryError:
            raise
        except (pa.ArrowException, OSError) as error:
            if witness.failed_with is not None:
                raise witness.failed_with from error
            raise _DamagedError(str(error)) from error


def open_file(where: Any, filesystem: pafs.FileSystem | None = None) -> pq.ParquetFile:
    """Open a Parquet file so that no large part of it is in memory, or read, for the few rows of it that are wanted.

    Arrow takes what one row group holds of the columns in one read, which is best for a store far away. Where that is
    much, as of a file that is a single group, it is read in parts, and not much farther than the last row that is
    wanted.

    Parameters
    ----------
    where : str or file
    filesystem : FileSystem, optional
        Of a path.
    """
    file = pq.ParquetFile(where, filesystem=filesystem)
    metadata = file.metadata
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    sizes = (group.column(index).total_compressed_size for group in groups for index in range(group.num_columns))
    if max(sizes, default=0) <= _LARGE_CHUNK_BYTES:
        return file
    file.close()
    return pq.ParquetFile(
        where, filesystem=filesystem, metadata=metadata, pre_buffer=False, buffer_size=_BYTES_READ_AT_ONCE
    )


def _damaged(piece: Piece, batch_size: int, weight_column: str | None) -> Iterator[pa.Table]:
    """The samples of a piece of which nothing is known but that they were there."""
    for first in range(piece.first_row, piece.first_row + piece.num_rows, batch_size):
        rows = range(first, min(first + batch_size, piece.first_row + piece.num_rows))
        found = {
            "image": pa.nulls(len(rows), pa.binary()),
            "image_path": pa.nulls(len(rows), pa.string()),
            "label": pa.nulls(len(rows), pa.string()),
            "key": pa.array([f"{piece.path}:{row}" for row in rows], pa.string()),
            "place": pa.array([piece.path] * len(rows), pa.string()),
            "problem": pa.array(["the shard is damaged here"] * len(rows), pa.string()),
        }
        yield pa.table(found | ({"weight": pa.array(np.ones(len(rows), np.float32))} if weight_column else {}))


def read_images(source: Source, shard: int, rows: NDArray[np.int64], config: InputConfig) -> Iterator[pa.Table]:
    """Images of some rows of a shard, given in ascending order, some hundreds at a time, as `schema.READ_IMAGE`."""
    for table in read_rows(source, shard, rows, [config.image_column]):
        image = table[config.image_column]
        yield pa.table([_encoded(image), pa.array(image_paths(image), pa.string())], schema=schema.READ_IMAGE)


def _rows_of_piece(file: pq.ParquetFile, piece: Piece, columns: Sequence[str]) -> pa.Table:
    end = piece.first_row + piece.num_rows
    _check_as_before(file, end, columns, piece.path)
    tables, start = [], 0
    for index, num_rows in enumerate(_group_rows(file)):
        stop = start + num_rows
        if start < end and piece.first_row < stop:
            for first, batch in _batches(file, index, start, columns, end):
                skip = max(piece.first_row - first, 0)
                tables.append(pa.table(batch.slice(skip, max(min(end - first, batch.num_rows) - skip, 0))))
        start = stop
    return pa.concat_tables(tables)


def read_rows(source: Source, shard: int, rows: NDArray[np.int64], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some rows of a shard, in ascending order, some hundreds at a time.

    Parameters
    ----------
    rows : ndarray of shape (K,), ascending

    Raises
    ------
    InputError
        If the shard is damaged, or lacks rows or columns that it had when it was catalogued; the message names it.
    OSError
        If its store fails twice.
    """
    path, num_given = source.paths[shard], 0
    try:
        with open_file(source.path(shard), source.filesystem) as file:
            for table in _rows(file, rows, columns, path):
                yield table
                num_given += table.num_rows
        return
    except MemoryError:
        raise
    except (pa.ArrowException, OSError):  # as in `_look`
        pass
    try:
        with _opened_again(source, shard) as file:
            yield from _rows(file, rows[num_given:], columns, path)
    except _DamagedError as error:
        raise InputError(
            f"shard {path} cannot be read: {str(error).rstrip('.')}. Repair it, or put it back as it was, and give the "
            "same command again."
        ) from error


def _rows(file: pq.ParquetFile, rows: NDArray[np.int64], columns: Sequence[str], path: str) -> Iterator[pa.Table]:
    _check_as_before(file, int(rows.max(initial=-1)) + 1, columns, path)
    start = 0
    for index, num_rows in enumerate(_group_rows(file)):
        stop = start + num_rows
        wanted = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
        if len(wanted):
            for first, batch in _batches(file, index, start, columns, int(wanted[-1]) + 1):
                low, high = np.searchsorted(rows, [first, first + batch.num_rows])
                if low < high:
                    yield pa.table(batch).take(pa.array(rows[low:high] - first))
        start = stop


def _group_rows(file: pq.ParquetFile) -> tuple[int, ...]:
    return tuple(file.metadata.row_group(index).num_rows for index in range(file.num_row_groups))


def _check_as_before(file: pq.ParquetFile, num_rows: int, columns: Sequence[str], path: str) -> None:
    """Raise InputError if a shard lacks rows or columns, as one that was written anew since it was looked at."""
    missing = [name for name in columns if file.schema_arrow.get_field_index(name) < 0]
    is_shorter = sum(_group_rows(file)) < num_rows
    if missing or is_shorter:
        found = "is shorter than it was" if is_shorter else f"has no column {missing[0]!r} any more"
        raise InputError(f"shard {path} {found}. Leave the input as it is while it is read.")


def _batches(
    file: pq.ParquetFile, row_group: int, start: int, columns: Sequence[str], end: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """A row group that begins with row `start`, by batches and their first rows: it may be larger than memory.

    No batch behind row `end` is decoded. Whoever wants some rows so decodes no more than who wanted more of them, and
    meets no damage that scoring has not met; for that, batches are the same whichever columns are wanted.
    """
    group = file.metadata.row_group(row_group)
    num_bytes = max(group.column(index).total_uncompressed_size for index in range(group.num_columns))
    stop = min(start + group.num_rows, end)
    at_once = max(min(_ROWS_READ_AT_ONCE, _BYTES_DECODED_AT_ONCE * group.num_rows // max(num_bytes, 1)), 1)
    for batch in file.iter_batches(at_once, row_groups=[row_group], columns=list(columns), use_threads=False):
        kinds = [field.with_type(_without_views(field.type)) for field in batch.schema]
        yield start, batch.cast(pa.schema(kinds)) if kinds != list(batch.schema) else batch
        start += batch.num_rows
        if start >= end:
            break
    if start < stop:  # of which Arrow says nothing
        raise pa.ArrowInvalid(f"row group {row_group} has fewer rows than the footer says")


def image_bytes(column: pa.ChunkedArray) -> list[bytes | None]:
    """Encoded images of a column of bytes, or of Hugging Face structs {bytes, path}."""
    return _encoded(column).to_pylist()


def image_paths(column: pa.ChunkedArray) -> list[str | None]:
    """The paths in Hugging Face structs {bytes, path}; None for images that are plain bytes."""
    if pa.types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
        return _texts(_field(column, "path"))[0]
    return [None] * len(column)


def _encoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return (_field(column, "bytes") if pa.types.is_struct(column.type) else column).cast(pa.binary())


def _field(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """One field of a column of structs; null where the struct is."""
    return pc.call_function("struct_field", [column], pc.StructFieldOptions([column.type.get_field_index(name)]))


def _texts(column: pa.ChunkedArray) -> tuple[list[str | None], list[bool]]:
    r"""Strings of a column, and which of them are not UTF-8, which Arrow does not look at until it is asked for them.

    >>> _texts(pa.chunked_array([pa.array([b"tea", b"caf\xe9"]).view(pa.string())]))
    (['tea', 'caf\\xe9'], [False, True])
    """
    try:
        return column.to_pylist(), [False] * len(column)
    except UnicodeDecodeError:
        encoded = column.cast(pa.binary()).to_pylist()
    texts = [None if value is None else value.decode(errors="backslashreplace") for value in encoded]
    return texts, [text is not None and text.encode() != value for text, value in zip(texts, encoded, strict=True)]


def _keys(
    table: pa.Table, piece: Piece, first_row: int, config: InputConfig
) -> tuple[Sequence[str | None], Sequence[str | None]]:
    """Names of the id column, or the rows' places in the input; and why a name is none. Its row goes by its place."""
    places = [f"{piece.path}:{first_row + row}" for row in range(table.num_rows)]
    if not config.id_column:
        return places, [None] * table.num_rows
    names, are_wrong = _texts(table[config.id_column].cast(pa.string()))
    keys = [place if is_wrong else name for name, place, is_wrong in zip(names, places, are_wrong, strict=True)]
    return keys, ["id is not UTF-8" if is_wrong else None for is_wrong in are_wrong]


def _check_columns(found: pa.Schema, path: str, config: InputConfig) -> LabelKind:
    wanted = {"image": config.image_column, "label": config.label_column}
    if config.id_column:
        wanted["id"] = config.id_column
    for role, name in wanted.items():
        if found.get_field_index(name) < 0:
            raise InputError(
                f"shard {path} has no column {name!r} (it has: {', '.join(found.names)}). "
                f"Name it with --input.{role}-column."
            )
    image = found.field(config.image_column).type
    if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
        kind = image.field("path").type if image.get_field_index("path") >= 0 else pa.null()
        if not (is_text(kind) or pa.types.is_null(kind)):
            # Of whatever else one must not ask for Python's values: Ray's type for objects unpickles them.
            raise InputError(f"shard {path}: the paths in column {config.image_column!r} are {kind}, not strings.")
        image = image.field("bytes").type
        if pa.types.is_null(image):
            raise InputError(
                f"shard {path}: column {config.image_column!r} holds paths and no bytes. Write the images into it, or "
                "name another column with --input.image-column."
            )
    if is_text(image):
        raise InputError(
            f"shard {path}: column {config.image_column!r} is text. Paths are not followed: write the images' bytes "
            "into a column (docs/inputs.md has the lines for it), and name that with --input.image-column."
        )
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image) or pa.types.is_binary_view(image)):
        raise InputError(
            f"shard {path}: column {config.image_column!r} is {image}, not bytes or a struct {{bytes, path}}. "
            "Name the column of encoded images with --input.image-column."
        )
    if config.id_column and not _is_id(kind := found.field(config.id_column).type):
        raise InputError(
            f"shard {path}: column {config.id_column!r} is {kind}, not integers or strings. "
            "Name the column that names the samples with --input.id-column."
        )
    label = found.field(config.label_column).type
    if pa.types.is_dictionary(label):
        label = label.value_type
    if pa.types.is_integer(label):
        return "integer"
    if is_text(label):
        return "string"
    raise InputError(
        f"shard {path}: column {config.label_column!r} is {label}, not integers or strings. "
        "Name the column of labels with --input.label-column."
    )


def _is_id(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(kind) or is_text(kind)


def _count(labels: pa.ChunkedArray | None) -> dict[Any, int]:
    if labels is None:
        return {}
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    assert labels is not None  # of which `cast` assures no checker
    counted = pc.call_function("value_counts", [labels.cast(_without_views(labels.type))])
    return {entry["values"]: entry["counts"] for entry in counted.to_pylist()}


def _without_views(kind: pa.DataType) -> pa.DataType:
    """The same type, but as Arrow's functions know it: of views many do not (Arrow 26).

    >>> _without_views(pa.struct({"bytes": pa.binary_view(), "n": pa.int64()}))
    StructType(struct<bytes: binary, n: int64>)
    """
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    return kind


def _fingerprint(source: Source, shard: int, labels: pa.Buffer | None) -> str:
    """Hash of a file's size, of its footer (offsets, sizes and statistics of every column chunk) and of its labels.

    Images that were swapped for others of the same size, with the same statistics, go unseen.
    """
    size, footer = retry.ask(lambda: _footer(source, shard))
    digest = hashlib.blake2b(footer, digest_size=16)
    digest.update(size.to_bytes(8, "little"))
    if labels is not None:
        digest.update(labels)
    return digest.hexdigest()


def _footer(source: Source, shard: int) -> tuple[int, bytes]:
    """A file's size, and its footer."""
    with source.filesystem.open_input_file(source.path(shard)) as file:
        size = file.size()
        file.seek(max(size - 8, 0))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(size - 8 - length, 0))
        return size, file.read(length)


def _as_stream(labels: pa.ChunkedArray) -> pa.Buffer:
    """Labels as bytes, to be hashed."""
    stream = pa.BufferOutputStream()
    table = pa.table({"label": labels}).combine_chunks()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def _probe_images(source: Source, shard: int, column: str) -> tuple[tuple[tuple[int, int], ...], Counter[str]]:
    def first_images(file: pq.ParquetFile) -> list[bytes | None]:
        # Of the first row group that is not empty: without its name Arrow would read ahead into those that follow.
        group = next((i for i in range(file.num_row_groups) if file.metadata.row_group(i).num_rows), None)
        if group is None:
            return []
        batch = next(file.iter_batches(batch_size=headers.NUM_PROBED, row_groups=[group], columns=[column]), None)
        return [] if batch is None else image_bytes(pa.chunked_array([batch.column(0)]))

    # Where they are damaged, reading will tell of every sample.
    try:
        return headers.look_at_some(_look(source, shard, first_images))
    except _DamagedError:
        return (), Counter()
