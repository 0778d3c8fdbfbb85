"""An input, whatever its format: found, looked at, and read a piece at a time.

Each format is a module with the same few functions: `inspect`, `read` and `read_images`. What they read looks the same
from here on: tables of `schema.READ`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray

from razor_ray import class_folders, listing, parquet_shards, tar_stream, webdataset_shards
from razor_ray import config as configuration
from razor_ray.config import InputConfig
from razor_ray.run_store import CONFIG, open_filesystem
from razor_ray.shards import Format, InputError, Piece, ShardFacts, Source

_TAKES = "--input takes Parquet or tars (a file, a folder or a glob), or a folder of class folders."

_SPLIT = re.compile(
    r"(?<![a-z])(?:(train|training)|(?:test|testing|eval|evaluation|val|valid|validation|dev))(?![a-z])"
)
"""What Hugging Face takes for the name of a split in the path of a file; the group is there for those to train on."""

_NAMES = {"parquet": ".parquet", "webdataset": "tars", "folders": "images in sub-folders"}


def find(config: InputConfig) -> Source:
    """List the shards of an input: a file, a folder (with its subfolders) or a glob.

    Raises
    ------
    InputError
        If nothing is there, or several formats are, or a column is named where there are none. Names that begin with
        '_' or '.' are no data.
    """
    source, usual = _find(config), InputConfig(path=config.path)
    names = {"parquet": (), "webdataset": ("image_column",), "folders": ("image_column", "label_column")}
    for name in names[source.format]:
        if (asked := getattr(config, name)) != getattr(usual, name):
            option = f"--input.{name.replace('_', '-')}"
            raise InputError(f"{_NAMES[source.format]} have no column {asked!r}. Leave out {option}.")
    return source


def _find(config: InputConfig) -> Source:
    try:
        filesystem, path = open_filesystem(config.path)
    except ValueError as error:
        raise InputError(str(error)) from error
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound and any(character in path for character in listing.WILDCARDS):
        base, infos = listing.matching(filesystem, path)
        files = listing.shard_files(filesystem, infos, base)
        if not files:
            raise InputError(f"no file matches {config.path}. Quote the glob, so that the shell does not expand it.")
        return _files(filesystem, base, files, _named_format(config, files))
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"there is no {config.path}. {_TAKES}")
    if info.type == pafs.FileType.File:
        return _files(filesystem, path.rpartition("/")[0], [info], _named_format(config, [info]))
    return _find_in_folder(config, filesystem, path.rstrip("/"))


def probe_path(source: Source) -> str:
    """A file of the input, in its filesystem: who sees this one may be taken to see them all."""
    return class_folders.first_file(source, 0) if source.format == "folders" else source.path(0)


def inspect(source: Source, shard: int, config: InputConfig) -> ShardFacts:
    """Look at a shard's structure, its labels and the headers of a few images.

    Raises
    ------
    InputError
        If it cannot be read or is not what the configuration says; the message names the shard.
    """
    return _module(source).inspect(source, shard, config)


def check_columns(source: Source, config: InputConfig) -> None:
    """Look, without Ray, whether the first shard has the columns that are asked for.

    Raises
    ------
    InputError
        As `inspect`, which looks at every shard. One that cannot be read is passed.
    """
    if source.format == "parquet":
        parquet_shards.check_columns(source, config)


def check_numbers(source: Source, column: str, mend: str) -> None:
    """Raise InputError, ending in how to mend it, unless the shards have a column of numbers of this name."""
    if source.format != "parquet":
        raise InputError(f"only Parquet has a column {column!r}, not {_NAMES[source.format]}. {mend}")
    parquet_shards.check_numbers(source, column, mend)


def read(
    source: Source, piece: Piece, config: InputConfig, batch_size: int, weight_column: str | None = None
) -> Iterator[pa.Table]:
    """The samples of a piece as tables of `schema.READ`: a batch each, the last may be smaller.

    Parameters
    ----------
    source : Source
    piece : Piece
    config : InputConfig
    batch_size : int
    weight_column : str, optional
        A column of Parquet to give as `weight` too; see `check_numbers`.
    """
    if weight_column:
        return parquet_shards.read(source, piece, config, batch_size, weight_column)
    return _module(source).read(source, piece, config, batch_size)


def read_images(source: Source, shard: int, rows: NDArray[np.int64], config: InputConfig) -> Iterator[pa.Table]:
    """Encoded images of some rows of a shard, some at a time, as tables of `schema.READ_IMAGE`.

    Parameters
    ----------
    source : Source
    shard : int
    rows : ndarray of shape (K,), ascending
    config : InputConfig
    """
    return _module(source).read_images(source, shard, rows, config)


def run_rows(source: Source, largest_group: int, at_least: int, at_most: int) -> int:
    """Rows of the shortest run of a shard that is read without reading others in vain, within bounds.

    Parameters
    ----------
    source : Source
    largest_group : int
        Rows of the largest of `ShardFacts.group_rows`.
    at_least, at_most : int
    """
    match source.format:
        case "folders":  # file by file
            return at_least
        case "webdataset" if any(tar_stream.is_compressed(path) for path in source.paths):
            return at_most  # all that lies before a run is unpacked for it
        case _:
            return max(at_least, min(largest_group, at_most))


def _module(source: Source) -> ModuleType:
    match source.format:
        case "parquet":
            return parquet_shards
        case "webdataset":
            return webdataset_shards
        case "folders":
            return class_folders


def _find_in_folder(config: InputConfig, filesystem: pafs.FileSystem, folder: str) -> Source:
    infos = listing.in_folder(filesystem, folder)
    if config.format == "auto" and _is_run(filesystem, folder, infos):
        raise InputError(
            f"{config.path} is the folder of a run of prune. What it kept is in its folder subset: name that."
        )
    by_format: dict[Format, list[pafs.FileInfo]] = {"parquet": [], "webdataset": [], "folders": []}
    for info in infos:
        if kind := _format(info):
            by_format[kind].append(info)
    for kind in ("parquet", "webdataset"):
        by_format[kind] = listing.shard_files(filesystem, by_format[kind], folder)
    images = by_format["folders"]
    by_format["folders"] = [info for info in images if "/" in listing.relative(info, folder)]
    found: list[Format] = [name for name, of_format in by_format.items() if of_format]
    if config.format != "auto":
        chosen: Format = config.format
    elif len(found) == 1:
        chosen = found[0]
    elif found:
        parts = [f"{len(by_format[name]):,} {_NAMES[name]} ({by_format[name][0].base_name}, ...)" for name in found]
        raise InputError(
            f"{config.path} holds {' and '.join(parts)}. Say which are meant with --input.format {' or '.join(found)}."
        )
    else:
        hint = f" Its {len(images):,} images lie in no class folder: class/name.jpg." if images else ""
        raise InputError(f"{config.path} holds no .parquet file, no tar and no class folder.{hint} {_TAKES}")
    # A link without a suffix may stand for a folder.
    listing.check_links(filesystem, [info for info in infos if _format(info) == chosen or "." not in info.base_name])
    if chosen == "folders":
        others = [listing.relative(info, folder) for info in infos if _format(info) != "folders"]
        return class_folders.find(filesystem, folder, images, others)
    if not by_format[chosen]:
        raise InputError(f"{config.path} holds no {_NAMES[chosen]}. {_TAKES}")
    _check_split(config, sorted(listing.relative(info, folder) for info in by_format[chosen]))
    return _files(filesystem, folder, by_format[chosen], chosen)


def _check_split(config: InputConfig, paths: list[str]) -> None:
    """Refuse a folder that holds images to train on and held-out ones side by side: a glob says which, or both."""
    of_kind: dict[bool, tuple[str, re.Match[str]]] = {}
    for path in paths:
        splits = list(_SPLIT.finditer(path.lower()))
        if len({bool(split[1]) for split in splits}) == 1:
            of_kind.setdefault(bool(splits[0][1]), (path, splits[0]))
    if len(of_kind) == 2:
        (train, found), (held_out, _) = of_kind[True], of_kind[False]
        rest = train[found.end() :]
        part = train[: found.end()] + (rest[: rest.index("/")] if "/" in rest else "*")
        raise InputError(
            f"{config.path} holds images to train on and others to test with ({train}, {held_out}). Name those that "
            f"are meant by a folder or a glob ({part} in it, for one), or give a glob that all of them match."
        )


def _is_run(filesystem: pafs.FileSystem, folder: str, infos: list[pafs.FileInfo]) -> bool:
    """Whether a folder is that of a finished run, by more than names that other folders may have too."""
    names = {listing.relative(info, folder) for info in infos}
    if CONFIG not in names or not any(name.startswith("subset/") for name in names):
        return False
    with filesystem.open_input_stream(f"{folder}/{CONFIG}") as stream:
        return configuration.verb_of(stream.read().decode(errors="replace")) == "prune"


def _named_format(config: InputConfig, files: list[pafs.FileInfo]) -> Format:
    """The format of files that were named one by one or by a glob; a name without a suffix means Parquet."""
    counts: Counter[Format] = Counter(_format(info) or "parquet" for info in files)
    if config.format == "auto" and len(counts) > 1:
        parts = [f"{count:,} {_NAMES[name]}" for name, count in counts.items()]
        raise InputError(f"{config.path} are {' and '.join(parts)}. Choose a glob of one kind, or give --input.format.")
    chosen: Format = next(iter(counts)) if config.format == "auto" else config.format
    if chosen == "folders":
        raise InputError(f"{config.path} are images. Name the folder that holds the class folders, class/name.jpg.")
    return chosen


def _format(info: pafs.FileInfo) -> Format | None:
    """The format that a file's name speaks for."""
    name = info.base_name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(webdataset_shards.SUFFIXES + webdataset_shards.UNREAD_SUFFIXES):
        return "webdataset"
    return "folders" if class_folders.is_image(name) else None


def _files(filesystem: pafs.FileSystem, base: str, infos: list[pafs.FileInfo], kind: Format) -> Source:
    """The source whose shards are files."""
    listing.check_links(filesystem, infos)
    by_path = sorted((listing.relative(info, base), info.size or 0, info.mtime_ns or 0) for info in infos)
    paths, sizes, mtimes = zip(*by_path, strict=True)
    if kind == "webdataset":
        for path in paths:
            webdataset_shards.check_suffix(path)
    return Source(filesystem, base.rstrip("/"), paths, sizes, kind, mtimes)
