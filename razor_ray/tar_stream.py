"""A tar as a stream of members, entered at any header. What it claims is checked; what is wrong becomes an InputError.

tarfile reads the headers. It takes a header that it cannot read for the end, and a header's word for its own length; so
both are looked at here.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from razor_ray.shards import InputError, Source

_MAX_HEADER_BYTES = 2**20
"""Of one header, with a long name and whatever else an extended one may say."""

_LOCAL_BUFFER, _REMOTE_BUFFER = 2**13, 2**23
"""Bytes read ahead. On a disk skipping an image costs nothing; on an object store each read is a request."""

_BROKEN = (
    # What tarfile and gzip are known to raise on files that are no tars, or are damaged. An OSError may pass by itself.
    *(tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, pa.ArrowException),
    *(ValueError, OverflowError, IndexError, RecursionError),
)


@dataclass(frozen=True, slots=True)
class Tar:
    """A tar that is open: its file, and tarfile's view of it."""

    path: str
    file: BinaryIO
    members: tarfile.TarFile

    def content(self, member: tarfile.TarInfo, most: int) -> bytes:
        """The bytes of the member that was read last, the first `most` of them."""
        self.file.seek(member.offset_data)
        size = min(member.size, most)
        content = self.file.read(size)
        if len(content) < size:
            raise EOFError(f"it ends inside {member.name!r}")
        return content


class _Headers:
    """A tar's file as tarfile sees it. It reads headers only, and takes their word for how long a header is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header at byte {self.tell()} claims {size} bytes")
        return self._file.read(size)


@contextmanager
def open_tar(source: Source, shard: int, offset: int = 0) -> Iterator[Tar]:
    """Open a tar at a byte (of a compressed one: of what it unpacks to); what is wrong becomes an InputError."""
    path = source.paths[shard]
    is_local = isinstance(source.filesystem, pafs.LocalFileSystem)
    try:
        with source.filesystem.open_input_file(source.path(shard)) as raw:
            file: Any = io.BufferedReader(raw, _LOCAL_BUFFER if is_local else _REMOTE_BUFFER)
            if is_compressed(path):
                file = gzip.GzipFile(fileobj=file)
            file.seek(offset)
            # The names' encoding must not depend on the machine's locale, and every key must be valid text.
            names = {"encoding": "utf-8", "errors": "backslashreplace"}
            yield Tar(path, file, tarfile.TarFile(fileobj=_Headers(file), **names))  # type: ignore[arg-type]
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(
            f"shard {path} cannot be read: {str(error).rstrip('.')}. Repair it, or move it out of the input."
        ) from error


def is_compressed(path: str) -> bool:
    """Whether a tar can be unpacked from its start only."""
    return path.lower().endswith("gz")


def members_of(tar: Tar) -> Iterator[tarfile.TarInfo]:
    """Members from where the tar was entered to its end.

    Raises
    ------
    tarfile.ReadError
        If a header leads backwards, or there is no proper end. `open_tar` makes it an InputError.
    """
    last = -1
    while (member := tar.members.next()) is not None:
        tar.members.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all that it has seen
        if member.size < 0 or member.offset <= last:
            raise tarfile.ReadError(f"a header at byte {member.offset} leads backwards")
        last = member.offset
        yield member
    # tarfile takes a header that it cannot read for the end. The end is two blocks of zeros, of which it has read one.
    rest = tar.file.read(tarfile.RECORDSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut off: the end is not marked")
    while rest:
        if any(rest):
            raise tarfile.ReadError(f"its header at byte {tar.members.offset} is damaged, or data follows its end")
        rest = tar.file.read(tarfile.RECORDSIZE)


def is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file whose bytes are all there: no folder, link or device."""
    # A sparse member may claim any size, all of it zeros that are nowhere.
    return member.isreg() and not member.issparse()
