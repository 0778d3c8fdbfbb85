"""A run's folder: what is done, how a stage commits, and the manifest.

The commit file, ``<stage>/.commit.json``, is the only truth: a stage without one has not happened, whatever lies in its
folder. It lists the stage's files, and readers take those and no others.

A stage writes its files where `RunStore.begin` says. On a local disk that is aside, ``_staging/<stage>``, and the
commit is one rename of the folder with the commit file in it: the stage is there whole or not at all. Object stores
have no rename, and a copy of everything would cost as much as the stage; there the files are written in their place,
and the commit file, written last, makes them the stage's. Parquet readers skip names that begin with an underscore.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.parse
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from razor_ray import config as configuration
from razor_ray import fsspec_store, listing

COMMIT = ".commit.json"
CONFIG = "config.json"
MANIFEST = "manifest.json"
COST = ".cost.json"
_STAGING = "_staging"
_MADE_OF = "_made_of"
"""In the folder of a stage that is under way: see `RunStore.resume`."""
_WHOLE_OR_NOT_AT_ALL = ("local", "s3", "gcs", "abfs")
"""Types of filesystem where `aside` keeps its word. Elsewhere (hdfs://, and what fsspec opens) a write that was killed
may leave a part of the file."""
_PARQUET_END = b"PAR1"
_FOOTERS_AT_ONCE = 16
_FILES = "files"

_OF_PYARROW = ("file", "s3", "gs", "hdfs")
_TAKES = "Use a local path, or s3://, gs:// or hdfs://, hf:// and whatever else fsspec opens."


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem and the path in it of a URI or a local path: pyarrow's own, or else one that fsspec knows.

    Local paths are made absolute, since the working directory differs between the driver and the workers. In a URI
    that pyarrow opens `%20` is a space, and a space is one too.

    Raises
    ------
    ValueError
        If neither knows the URI's scheme, or the package for it is missing.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    try:
        if not uri.startswith("hf://"):
            return pafs.FileSystem.from_uri(_escaped(uri))
    except pa.ArrowNotImplementedError as error:
        raise ValueError(f"cannot open {uri}: {error}. {_TAKES}") from error
    except pa.ArrowInvalid as error:
        scheme = uri.partition("://")[0]
        if scheme in _OF_PYARROW or scheme not in fsspec.available_protocols():
            raise ValueError(f"cannot open {uri}: {error}. {_TAKES}") from error
    try:
        filesystem, path = fsspec.url_to_fs(uri)
    except ImportError as error:
        raise ValueError(f"cannot open {uri}: a package is missing here. {error}.") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot open {uri}: {error}. {_TAKES}") from error
    return pafs.PyFileSystem(fsspec_store.Handler(filesystem)), path


def check_apart(read: str, written: str) -> None:
    """Refuse to write into what is read: a run's own files would become its input, or take its place.

    Raises
    ------
    ValueError
        If the folder that is written lies in the one that is read, or is it.
    """
    (filesystem, source), (other, target) = open_filesystem(read), open_filesystem(written)
    if "**" in source.split("/"):  # all below is read; other wildcards end at a folder
        source = listing.base_of(source)
    if isinstance(filesystem, pafs.LocalFileSystem):
        source, target = os.path.realpath(source), os.path.realpath(target)
    if filesystem.type_name == other.type_name and f"{target.rstrip('/')}/".startswith(f"{source.rstrip('/')}/"):
        raise ValueError(
            f"--output {written} lies in --input {read}: what is written would become input. Choose a folder outside."
        )


def _escaped(uri: str) -> str:
    """A URI as its grammar wants it, of one as people write it: with spaces, umlauts, brackets and other characters.

    >>> _escaped("s3://bucket/my images/train-[0-3].parquet?region=eu-west-1")
    's3://bucket/my%20images/train-%5B0-3%5D.parquet?region=eu-west-1'
    >>> _escaped("s3://bucket/100%/a%20b"), _escaped("s3://bucket/#1"), _escaped("hdfs://[::1]:8020/[1]")
    ('s3://bucket/100%25/a%20b', 's3://bucket/%231', 'hdfs://[::1]:8020/%5B1%5D')
    """
    place, mark, options = uri.partition("?")
    scheme, authority, path = re.fullmatch("([^/]*//)?([^/]*)(.*)", place, re.DOTALL).groups("")  # type: ignore[union-attr]
    path = re.sub("%(?![0-9A-Fa-f]{2})", "%25", path)  # others are escapes already
    return scheme + authority + urllib.parse.quote(path, safe="%/:@!$&'()*+,;=~") + mark + options


class RunStore:
    """One run's folder on any pyarrow filesystem.

    Parameters
    ----------
    uri : str
        Local path or URI. The folder is made when the first file is written.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.filesystem, self.root = open_filesystem(uri)
        self.confirm: Callable[[], None] = lambda: None
        """Called before a stage begins and before it commits; raises if the folder is another run's by now."""

    def path(self, *names: str) -> str:
        """A path in the store's filesystem."""
        return "/".join((self.root.rstrip("/"), *names))

    def address(self, *names: str) -> str:
        """A path in the store as one would pass it on: a local path, or a URI with its options."""
        if "://" not in self.uri:
            return self.path(*names)
        place, mark, options = self.uri.partition("?")
        return "/".join((place.rstrip("/"), *names)) + mark + options

    def claim(self, config: configuration.AnyConfig) -> None:
        """Make this folder the run of `config`, or find that it already is.

        Raises
        ------
        ValueError
            As `check_free` does.
        """
        self.check_free(config)
        try:
            if not self._exists(self.path(CONFIG)):
                self.write_json(CONFIG, configuration.to_dict(config))
        except NotADirectoryError as error:
            raise ValueError(f"{self.uri} lies under a file. Choose another --output.") from error

    def check_free(self, config: configuration.AnyConfig) -> None:
        """Refuse a folder that is not for the run of `config`. Writes nothing.

        Raises
        ------
        ValueError
            If the folder holds a run of another configuration, or files that are no run.
        """
        try:
            text = self.read_text(CONFIG)
            if text is None and self._visible(self.root):
                raise ValueError(f"{self.uri} is not empty and holds no run. Choose another --output.")
        except NotADirectoryError as error:
            raise ValueError(f"{self.uri} is no folder, or lies under a file. Choose another --output.") from error
        if text is None:
            return
        try:
            found = configuration.load(type(config), text)  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            kind = f"a run of {verb}" if (verb := configuration.verb_of(text)) else f"another kind of run ({error})"
            raise ValueError(f"{self.uri} holds {kind}. Choose another --output.") from error
        if changed := configuration.differences(config, found):
            raise ValueError(
                f"{self.uri} holds another run ({'; '.join(changed)}). "
                "Choose another --output, or delete that folder to start anew."
            )

    def is_done(self, stage: str) -> bool:
        """Whether the stage has committed; a commit file that was not written to its end is none."""
        return self.read_json(f"{stage}/{COMMIT}") is not None

    def commit_facts(self, stage: str) -> dict[str, Any]:
        """What the stage said when it committed."""
        return {name: value for name, value in self._commit(stage).items() if name != _FILES}

    def begin(self, stage: str, keep: Collection[str] = ()) -> str:
        """The folder for the stage's files; of what earlier attempts left, only the files named in `keep` stay there.

        Parameters
        ----------
        stage : str
        keep : collection of str
            Names that mean the same content whoever wrote it: the new attempt goes on from those that are there.
        """
        self.confirm()
        work, final = self._work(stage), self.path(stage)
        self._delete_file(f"{final}/{COMMIT}")  # first: what is taken apart below is no stage any more
        if work != final and keep and not self._exists(work) and self._exists(final):
            # It had committed, but the run died before the stage that commits with it.
            self.filesystem.create_dir(self.path(_STAGING), recursive=True)
            self.filesystem.move(final, work)
        if work != final:
            self.discard(stage)
        found = self._list(work)
        leftovers = set(found).difference(keep)
        if len(leftovers) == len(found):
            self._delete_dir(work)
        else:
            for name in leftovers:
                self.filesystem.delete_file(f"{work}/{name}")
        self.filesystem.create_dir(work, recursive=True)
        return work

    def resume(self, stage: str, made_of: str) -> tuple[str, frozenset[str]]:
        """As `begin`, and the names of the files that an earlier attempt finished, if it was made of the same.

        Parameters
        ----------
        stage : str
        made_of : str
            What decides the content of its files, besides their names and the run's configuration.
        """
        mark = f"{self._work(stage)}/{_MADE_OF}"
        finished: frozenset[str] = frozenset()
        if self._exists(mark):
            with self.filesystem.open_input_stream(mark) as stream:
                finished = frozenset(self.finished(stage)) if stream.read() == made_of.encode() else finished
        folder = self.begin(stage, keep=finished)
        write_file(self.filesystem, mark, made_of.encode())
        return folder, finished

    def finished(self, stage: str) -> set[str]:
        """Names of the files of a stage that is under way: those that were written to their end."""
        selector = pafs.FileSelector(self._work(stage), allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        files = [info for info in found if info.size and not info.base_name.startswith(("_", "."))]
        if self.filesystem.type_name in _WHOLE_OR_NOT_AT_ALL:
            return {info.base_name for info in files}
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            are_whole = pool.map(partial(_is_whole, self.filesystem), files)
            return {info.base_name for info, is_whole in zip(files, are_whole, strict=True) if is_whole}

    def num_bytes(self, stages: Collection[str]) -> int:
        """Bytes of the files of some stages, those under way included."""
        folders = {folder for stage in stages for folder in (self._work(stage), self.path(stage))}
        selectors = [pafs.FileSelector(folder, allow_not_found=True) for folder in folders]
        return sum(info.size or 0 for selector in selectors for info in self.filesystem.get_file_info(selector))

    def commit(self, stage: str, facts: dict[str, Any], names: Collection[str] | None = None) -> None:
        """Make the stage's files its result, together with `facts` (JSON).

        Parameters
        ----------
        stage : str
        facts : dict
        names : collection of str, optional
            The stage's files; without it all that were finished. Others are deleted.
        """
        self.confirm()
        work = self._work(stage)
        kept = sorted(self.finished(stage) if names is None else names)
        for leftover in set(self._list(work)).difference(kept):
            self.filesystem.delete_file(f"{work}/{leftover}")  # such as of a worker that died while it wrote
        content = facts | {_FILES: kept}
        if work == self.path(stage):
            self.write_json(f"{stage}/{COMMIT}", content)
            return
        self.write_json(f"{_STAGING}/{stage}/{COMMIT}", content)
        self.filesystem.move(work, self.path(stage))
        if not self._list(self.path(_STAGING)):
            self.discard(_STAGING)

    def seal(self, stage: str, facts: dict[str, Any]) -> None:
        """Commit a stage whose files were written in their place, one by one: only the commit file makes them its."""
        self.confirm()
        self.write_json(f"{stage}/{COMMIT}", facts)

    def drop(self, stage: str) -> None:
        """Delete the files of a stage that is under way and is not to commit."""
        self._delete_dir(self._work(stage))

    def discard(self, name: str) -> None:
        """Delete a folder of the run, if it is there."""
        self._delete_dir(self.path(name))

    def discard_if_empty(self) -> None:
        """Delete the run's folder if nothing is in it, so that a run that could not begin leaves nothing behind."""
        if not self._list(self.root):
            self._delete_dir(self.root)

    def stamp(self, stage: str) -> str:
        """A text that is another when the stage has committed something else, or, where files have times, anew."""
        content = self.read_text(f"{stage}/{COMMIT}") or ""
        digest = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
        return f"{digest}-{self.committed_ns(stage)}"

    def committed_ns(self, stage: str) -> int:
        """When a stage committed, in nanoseconds since 1970; 0 where the filesystem does not tell."""
        return self.filesystem.get_file_info(self.path(stage, COMMIT)).mtime_ns or 0

    def files(self, stage: str) -> list[str]:
        """Paths of a committed stage's Parquet files, sorted by name."""
        names = self._commit(stage).get(_FILES)
        if names is None:  # sealed, or of a version that did not list them
            names = self._visible(self.path(stage))
        return [self.path(stage, name) for name in names if name.endswith(".parquet")]

    def file_sizes(self, stage: str) -> list[int]:
        """Bytes of each of `files`. The folder is listed: asked one by one, a store answers one after the other."""
        found = self.filesystem.get_file_info(pafs.FileSelector(self.path(stage)))
        size_of = {info.base_name: info.size or 0 for info in found}
        return [size_of[path.rpartition("/")[2]] for path in self.files(stage)]

    def read(self, stage: str, columns: list[str] | None = None) -> pa.Table:
        """A committed stage as one table, in the order of its files. For tables of a row per shard or class."""
        tables = [pq.read_table(path, columns=columns, filesystem=self.filesystem) for path in self.files(stage)]
        return pa.concat_tables(tables)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        self.write_bytes(name, json.dumps(value, indent=2, sort_keys=False).encode() + b"\n")

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file whole or not at all."""
        write_file(self.filesystem, self.path(name), content)

    def delete(self, name: str) -> None:
        """Delete a file of the run, if it is there."""
        self._delete_file(self.path(name))

    def read_text(self, name: str) -> str | None:
        """A text file of the run, or None if there is none."""
        if not self._exists(self.path(name)):
            return None
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return stream.read().decode()

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run; None if there is none, or not all of it.

        Where writes go to their place, whoever wrote it may have died before its end.
        """
        text = self.read_text(name)
        with suppress(json.JSONDecodeError):
            return None if text is None else json.loads(text)
        return None

    def _commit(self, stage: str) -> dict[str, Any]:
        content = self.read_json(f"{stage}/{COMMIT}")
        assert content is not None, f"stage {stage} has not committed"
        return content

    def _work(self, stage: str) -> str:
        """Where a stage's files are written."""
        return self.path(_STAGING, stage) if isinstance(self.filesystem, pafs.LocalFileSystem) else self.path(stage)

    def _delete_file(self, path: str) -> None:
        if self._exists(path):
            self.filesystem.delete_file(path)

    def _delete_dir(self, path: str) -> None:
        if self._exists(path):
            self.filesystem.delete_dir(path)

    def _exists(self, path: str) -> bool:
        return self.filesystem.get_file_info(path).type != pafs.FileType.NotFound

    def _visible(self, path: str) -> list[str]:
        return [name for name in self._list(path) if not name.startswith("_")]

    def _list(self, path: str) -> list[str]:
        selector = pafs.FileSelector(path, allow_not_found=True)
        if self.filesystem.get_file_info(path).type == pafs.FileType.File:
            raise NotADirectoryError(f"{path} is a file")
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))


def _is_whole(filesystem: pafs.FileSystem, info: pafs.FileInfo) -> bool:
    """Whether a file was written to its end, as far as it tells: Parquet ends with the letters that it begins with."""
    if info.extension != "parquet":
        return True
    with filesystem.open_input_file(info.path) as file:
        file.seek(max(info.size - len(_PARQUET_END), 0))
        return info.size > 2 * len(_PARQUET_END) and file.read() == _PARQUET_END  # it begins with them too


def write_file(filesystem: pafs.FileSystem, path: str, content: bytes) -> None:
    """Write a small file whole or not at all, and the folder that it is in."""
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    with aside(filesystem, path) as target, filesystem.open_output_stream(target) as stream:
        stream.write(content)


def write_table(filesystem: pafs.FileSystem, path: str, table: pa.Table) -> None:
    """Write one Parquet file whole or not at all: zstd, but for lists, such as embeddings.

    Those hardly get smaller (1 % on noise in float16) and are read back seven times as fast as they are.
    """
    flat = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    with aside(filesystem, path) as target:
        pq.write_table(
            table,
            target,
            filesystem=filesystem,
            use_dictionary=flat,  # pyright: ignore[reportArgumentType]  (its stubs know a bool)
            compression=dict.fromkeys(flat, "zstd"),  # pyright: ignore[reportArgumentType]  (or one name)
        )


@contextmanager
def aside(filesystem: pafs.FileSystem, path: str) -> Iterator[str]:
    """Where to write a file that is to be there whole or not at all.

    A local write can stop half-way, so it goes to a name that no reader takes for data and is renamed when it has ended
    well. An object store shows nothing before a put has ended; what an error has ended is deleted there. Of other
    filesystems that is not known, so `finished` and `is_done` look whether the file has its end.
    """
    if not isinstance(filesystem, pafs.LocalFileSystem):
        try:
            yield path
        except BaseException:
            # Whoever closes a stream on its way out ends the put too, and what there is of it would pass for the file.
            with suppress(OSError):  # the store may be what failed
                if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
                    filesystem.delete_file(path)
            raise
        return
    folder, _, name = path.rpartition("/")
    target = f"{folder}/_{name}.{uuid.uuid4().hex[:12]}"  # a process id would not differ among containers
    try:
        yield target
        with open(target, "rb") as written:
            os.fsync(written.fileno())  # or a machine that loses its power could find the name and no content
        filesystem.move(target, path)
    except BaseException:
        if filesystem.get_file_info(target).type != pafs.FileType.NotFound:
            filesystem.delete_file(target)
        raise
