"""What fsspec opens, for pyarrow, with errors that say what they are.

Each implementation raises errors of the library that it is made of: of aiohttp, of Azure's. Here they become OSErrors,
which is what all that speaks to a store expects: it asks again, ends the run so that it may be begun again, and takes
the input for neither broken nor bad.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

P = ParamSpec("P")
T = TypeVar("T")


def _told(call: Callable[P, T]) -> Callable[P, T]:
    """The same call, with errors of a store's own kind as OSErrors."""

    @functools.wraps(call)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if type(error).__module__ == "builtins" or isinstance(error, OSError | ValueError | pa.ArrowException):
                raise
            raise OSError(f"{type(error).__name__}: {error}") from error

    return told


class _File:
    """A file of fsspec, as `pyarrow.PythonFile` wants one."""

    def __init__(self, file: Any) -> None:
        self._file = file
        for name in ("read", "write", "seek", "tell", "flush", "close"):
            setattr(self, name, _told(getattr(file, name)))

    @property
    def closed(self) -> bool:
        return self._file.closed


class Handler(pafs.FSSpecHandler):
    """pyarrow's way to fsspec's filesystems, but for the errors."""

    def open_input_stream(self, path: str) -> pa.PythonFile:
        """Open a file to read."""
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.PythonFile:
        """Open a file to read, in any order."""
        self._check_file(path)
        return pa.PythonFile(_File(_told(self.fs.open)(path, mode="rb")), mode="r")

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        self._check_file(path)
        _told(self.fs.rm)(path)

    def open_output_stream(self, path: str, metadata: Any) -> pa.PythonFile:
        """Open a new file to write."""
        return pa.PythonFile(_File(_told(self.fs.open)(path, mode="wb")), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.PythonFile:
        """Open a file to write behind its end."""
        return pa.PythonFile(_File(_told(self.fs.open)(path, mode="ab")), mode="w")

    def _check_file(self, path: str) -> None:
        # Not by `isfile` or `exists`: these take whatever a store fails with for a no.
        if _told(self.fs.info)(path)["type"] != "file":
            raise FileNotFoundError(path)


for _name in (
    *("get_file_info", "get_file_info_selector", "create_dir", "delete_dir", "delete_dir_contents"),
    *("delete_root_dir_contents", "move", "copy_file"),
):
    setattr(Handler, _name, _told(getattr(pafs.FSSpecHandler, _name)))
