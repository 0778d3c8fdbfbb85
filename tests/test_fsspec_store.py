"""Errors of what fsspec opens: a store's own become OSErrors, all others stay as they are."""

from __future__ import annotations

import pickle

import fsspec
import pyarrow.fs as pafs
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from razor_ray import fsspec_store
from razor_ray.run_store import open_filesystem


class AzureError(Exception):
    """As libraries of stores have them."""


class Failing(MemoryFileSystem):
    """A store that fails in its own way, on all calls or inside of its files."""

    protocol = "failing"
    cachable = False
    error: Exception | None = None
    inside: Exception | None = None

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        error = super().__getattribute__("error")
        if error is not None and name in ("info", "find", "open", "rm", "makedirs", "mv", "mkdir"):
            return lambda *_, **__: (_ for _ in ()).throw(error)
        return found

    def open(self, path, mode="rb", **options):
        file = super().open(path, mode, **options)
        if self.inside is not None:
            inside = self.inside
            file.read = file.write = lambda *_: (_ for _ in ()).throw(inside)
        return file


@pytest.fixture
def store():
    fs = Failing()
    fs.pipe_file("/bucket/a", b"content")
    yield fs, pafs.PyFileSystem(fsspec_store.Handler(fs))
    fs.error = None
    fs.rm("/bucket", recursive=True)


def read(filesystem: pafs.FileSystem) -> bytes:
    with filesystem.open_input_stream("bucket/a") as stream:
        return stream.read()


def write(filesystem: pafs.FileSystem) -> None:
    with filesystem.open_output_stream("bucket/b") as stream:
        stream.write(b"more")


def test_what_works_works_as_before(store):
    _, filesystem = store
    assert read(filesystem) == b"content"
    with filesystem.open_input_file("bucket/a") as file:
        file.seek(3)
        assert (file.read(2), file.size()) == (b"te", 7)
    write(filesystem)
    assert [info.base_name for info in filesystem.get_file_info(pafs.FileSelector("bucket"))] == ["a", "b"]
    filesystem.delete_file("bucket/b")
    assert filesystem.get_file_info("bucket/b").type == pafs.FileType.NotFound
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_stream("bucket/none")


@pytest.mark.parametrize(
    "call",
    [
        read,
        write,
        lambda filesystem: filesystem.get_file_info("bucket/a"),
        lambda filesystem: filesystem.get_file_info(pafs.FileSelector("bucket")),
        lambda filesystem: filesystem.delete_file("bucket/a"),
        lambda filesystem: filesystem.create_dir("bucket/c"),
        lambda filesystem: filesystem.move("bucket/a", "bucket/d"),
    ],
)
def test_an_error_of_a_stores_own_is_an_os_error(store, call):
    fs, filesystem = store
    fs.error = AzureError("try again")
    with pytest.raises(OSError, match="AzureError: try again"):
        call(filesystem)
    fs.error = TypeError("a fault of somebody's")
    with pytest.raises(TypeError, match="a fault of somebody's"):
        call(filesystem)


@pytest.mark.parametrize("call", [read, write])
def test_an_error_inside_of_a_file_is_one_too(store, call):
    fs, filesystem = store
    fs.inside = AzureError("connection reset")
    with pytest.raises(OSError, match="AzureError: connection reset"):
        call(filesystem)


def test_it_goes_to_other_processes_and_is_the_same_there():
    filesystem, path = open_filesystem("memory://bucket/run")
    assert isinstance(filesystem, pafs.PyFileSystem) and isinstance(filesystem.handler, fsspec_store.Handler)
    assert path.strip("/") == "bucket/run"
    assert pickle.loads(pickle.dumps(filesystem)) == filesystem
    assert pafs.PyFileSystem(fsspec_store.Handler(fsspec.filesystem("memory"))) == filesystem
