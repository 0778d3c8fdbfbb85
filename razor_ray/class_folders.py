"""Class folders, ``class/name.jpg``: a shard is a run of the sorted listing; a million files are a thousand shards.

A run is named by its length and its first file. Who reads it lists the folders that it spans again, and checks a hash
of names and sizes: no list of a million files is carried about.
"""

from __future__ import annotations

import bisect
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray

from razor_ray import headers, listing, retry, schema
from razor_ray.config import InputConfig
from razor_ray.shards import InputError, Piece, ShardFacts, Source, check_batch_bytes

_FILES_PER_SHARD = 1000
_IMAGES_READ_AT_ONCE = 100
_READERS = 8
"""Threads that read files, which on an object store mostly wait."""

_FROM = " files from "
_MOST_NAMED = 5

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class _File:
    class_name: str
    name: str
    size: int

    @property
    def path(self) -> str:
        return f"{self.class_name}/{self.name}"


def find(filesystem: pafs.FileSystem, base: str, infos: list[pafs.FileInfo], others: Sequence[str] = ()) -> Source:
    """Cut the images of a folder's class folders into runs.

    Parameters
    ----------
    filesystem : FileSystem
    base : str
        The folder that holds the class folders.
    infos : list of FileInfo
        The images in it.
    others : sequence of str
        Paths in the folder of other files, to tell of.

    Raises
    ------
    InputError
        If an image lies anywhere but in a class folder.
    """
    paths = [listing.relative(info, base) for info in infos]
    if elsewhere := [path for path in paths if path.count("/") != 1]:
        parents = sorted({path.rsplit("/", 2)[0] for path in elsewhere if "/" in path})
        named = f", such as {' or '.join(f'{base}/{parent}' for parent in parents[:_MOST_NAMED])}" if parents else ""
        raise InputError(
            f"class folders are class/name.jpg, but {base} holds {elsewhere[0]}. Name the folder whose sub-folders are "
            f"the classes{named}, or move the image into one of them."
        )
    files = []
    for path, info in zip(paths, infos, strict=True):
        class_name, _, name = path.partition("/")
        files.append(_File(class_name, name, info.size or 0))
    if not files:
        raise InputError(f"{base} has no sub-folder with images. Class folders are class/name.jpg.")
    files.sort()
    runs = [files[start : start + _FILES_PER_SHARD] for start in range(0, len(files), _FILES_PER_SHARD)]
    paths = tuple(f"{len(run)}{_FROM}{run[0].path}" for run in runs)
    sizes = tuple(sum(file.size for file in run) for run in runs)
    fingerprints = tuple(_fingerprint(run) for run in runs)
    classes = tuple(sorted({file.class_name for file in files}))
    folders = [info.base_name for info in filesystem.get_file_info(pafs.FileSelector(base)) if _is_folder(info)]
    left_alone = _in_words([path for path in others if "/" in path], sorted(set(folders) - set(classes)))
    return Source(
        filesystem,
        base,
        paths,
        sizes,
        "folders",
        fingerprints=fingerprints,
        class_folders=classes,
        left_alone=left_alone,
    )


def _is_folder(info: pafs.FileInfo) -> bool:
    return info.type == pafs.FileType.Directory and info.base_name[0] not in "._"


def _in_words(others: Sequence[str], empty: Sequence[str]) -> str:
    """What lies in class folders and is no image by its name, and which folders hold no image.

    >>> _in_words(["cat/notes.txt", "cat/1.heic", "bird/2.HEIC"], ["bird", "fish"])
    '3 files that are no images by their names (.heic 2, .txt 1); bird, fish hold no image and are no classes'
    >>> _in_words([], ["bird"])
    'bird holds no image and is no class'
    """
    said = []
    if empty:
        what = "holds no image and is no class" if len(empty) == 1 else "hold no image and are no classes"
        said = [f"{', '.join(empty[:_MOST_NAMED])}{', ...' if len(empty) > _MOST_NAMED else ''} {what}"]
    if not others:
        return "".join(said)
    names = [path.rpartition("/")[2] for path in others]
    suffixes = Counter(f".{name.rpartition('.')[2].lower()}" if "." in name else "no suffix" for name in names)
    counted = ", ".join(f"{suffix} {count:,}" for suffix, count in suffixes.most_common(_MOST_NAMED))
    files = (
        "1 file that is no image by its name"
        if len(others) == 1
        else f"{len(others):,} files that are no images by their names"
    )
    return "; ".join([f"{files} ({counted})", *said])


def first_file(source: Source, shard: int) -> str:
    """Path in the filesystem of a run's first file."""
    return f"{source.base}/{source.paths[shard].partition(_FROM)[2]}"


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image.

    >>> is_image("n01440764_18.JPEG"), is_image("Thumbs.db"), is_image("._1.jpg")
    (True, False, False)
    """
    return not name.startswith(".") and name.rpartition(".")[2].lower() in headers.SUFFIXES


def inspect(source: Source, shard: int, config: InputConfig) -> ShardFacts:
    """List a run again, and read the headers of a few images.

    Raises
    ------
    InputError
        If it is not as it was found, or `config.id_column` is none of 'path', 'key' and 'name'.
    """
    if config.id_column not in (None, "path", "key", "name"):
        raise InputError(
            f"class folders have no ids {config.id_column!r}. Pass --input.id-column path (class/name.jpg), "
            "key (class/name) or name."
        )
    files = _list_run(source, shard)
    some = [_read_file(source, file)[0] for file in files[: headers.NUM_PROBED]]
    image_dimensions, problems = headers.look_at_some(content for content in some if content is not None)
    return ShardFacts(
        num_samples=len(files),
        fingerprint=source.fingerprints[shard],
        label_kind="string",
        label_counts=dict(Counter(file.class_name for file in files)),
        class_names=None,
        image_dimensions=image_dimensions,
        group_rows=(len(files),),
        problems=dict(problems),
    )


def read(source: Source, piece: Piece, config: InputConfig, batch_size: int) -> Iterator[pa.Table]:
    """The samples of a piece, a batch at a time, as `schema.READ` has them."""
    files = _list_run(source, piece.shard_id)[piece.first_row : piece.first_row + piece.num_rows]
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            num_bytes = sum(file.size for file in batch if file.size <= headers.MAX_FILE_BYTES)
            check_batch_bytes(num_bytes, len(batch), f"{batch[0].path} and those behind it")
            images, problems = zip(*pool.map(lambda file: _read_file(source, file), batch), strict=True)
            paths = [file.path for file in batch]
            labels = [file.class_name for file in batch]
            keys = [_id(path, config) for path in paths]
            yield pa.table([images, paths, labels, keys, paths, problems], schema=schema.READ)


def read_images(source: Source, shard: int, rows: NDArray[np.int64], config: InputConfig) -> Iterator[pa.Table]:
    """Images of some rows of a shard, given in ascending order, some at a time, as `schema.READ_IMAGE`.

    Raises
    ------
    InputError
        If one of them cannot be read: it could when it was scored.
    """
    files = _list_run(source, shard)
    with ThreadPoolExecutor(_READERS) as pool:
        for chosen in _some_at_once([files[row] for row in rows.tolist()]):
            images, problems = zip(*pool.map(lambda file: _read_file(source, file), chosen), strict=True)
            for file, problem in zip(chosen, problems, strict=True):
                if problem:
                    raise InputError(
                        f"{file.path} in {source.base} was read when it was scored, and now: {problem}. Put it back "
                        "as it was, and give the same command again."
                    )
            yield pa.table([images, [file.path for file in chosen]], schema=schema.READ_IMAGE)


def _some_at_once(files: list[_File]) -> Iterator[list[_File]]:
    some: list[_File] = []
    num_bytes = 0
    for file in files:
        if len(some) == _IMAGES_READ_AT_ONCE or (some and num_bytes + file.size > headers.BYTES_READ_AT_ONCE):
            yield some
            some, num_bytes = [], 0
        some.append(file)
        num_bytes += file.size
    if some:
        yield some


def _list_run(source: Source, shard: int) -> list[_File]:
    """The files of a run, as they are now. Of a store that fails, and goes on failing, it raises OSError."""
    count, _, first = source.paths[shard].partition(_FROM)
    try:
        files = retry.ask(lambda: _list_from(source, first, int(count)))
    except (pa.ArrowException, *retry.NOT_THERE) as error:
        raise InputError(f"the {source.paths[shard]} cannot be listed: {error}") from error
    if _fingerprint(files) != source.fingerprints[shard]:
        raise InputError(
            f"the {source.paths[shard]} in {source.base} are not those that were there before. Leave the input as it "
            "is while it is read, and choose another --output for a changed one."
        )
    return files


def _list_from(source: Source, first: str, count: int) -> list[_File]:
    """As many files as there are of `count`, in order, from the first on."""
    first_class, _, first_name = first.partition("/")
    files: list[_File] = []
    for class_name in source.class_folders[bisect.bisect_left(source.class_folders, first_class) :]:
        found = sorted(_list_class(source, class_name))
        files += [file for file in found if class_name > first_class or file.name >= first_name]
        if len(files) >= count:
            break
    return files[:count]


def _fingerprint(files: list[_File]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0".encode())
    return digest.hexdigest()


def _list_class(source: Source, class_name: str) -> Iterator[_File]:
    for info in source.filesystem.get_file_info(pafs.FileSelector(f"{source.base}/{class_name}")):
        if info.type == pafs.FileType.File and is_image(info.base_name):
            yield _File(class_name, info.base_name, info.size or 0)


def _read_file(source: Source, file: _File) -> tuple[bytes | None, str | None]:
    """A file's content, or why there is none. Of a store that fails, and goes on failing, it raises OSError."""
    if file.size > headers.MAX_FILE_BYTES:
        return None, "image file is too large"

    def content() -> bytes:
        with source.filesystem.open_input_stream(f"{source.base}/{file.path}") as stream:
            return stream.read()

    try:
        return retry.ask(content), None
    except retry.NOT_THERE:
        return None, "image file cannot be read"


def _id(path: str, config: InputConfig) -> str:
    """A sample's name: its path, its key (as in a tar of these folders) or its key's last part."""
    if config.id_column in (None, "path"):
        return path
    class_name, _, name = path.partition("/")
    stem = name.partition(".")[0]
    return stem if config.id_column == "name" else f"{class_name}/{stem}"
