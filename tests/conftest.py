"""One local Ray for all tests that need one, and real images to run on."""

from __future__ import annotations

import io
import os
import re
import sys
import tarfile
import tempfile
from collections.abc import Callable, Container, Iterator
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

if TYPE_CHECKING:
    from razor_ray.stages.catalog import Catalog

# Before Ray is imported, so that plain `pytest` runs as `make test` does.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.pop("RAY_ADDRESS", None)
# Of the S3 that tests speak to, on this machine; a person's own are out of their reach.
for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
    os.environ.pop(name, None)
os.environ |= {f"AWS_{name}": "testing" for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")}
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # what `python` means in a submitted job

DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_itemcollected(item: pytest.Item) -> None:
    """So that `make test` can run what needs Ray, which mostly waits, and the rest side by side."""
    if "ray_session" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def ray_session(request) -> Iterator[str]:
    """A private Ray, started by our own session, which stages find open; with a job server if a test asks for that.
    Gives the server's address."""
    import ray
    from ray._private.parameter import RayParams

    from razor_ray.stages import runtime

    # A folder of its own, and in it the note that `ray start` leaves: without one a job looks for its cluster among the
    # machine's processes, and may find another's. Short, since paths of sockets must be.
    with tempfile.TemporaryDirectory(prefix="rr") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        # Any port for the agent by which jobs are taken, lest it be that of another Ray of this machine.
        patch.setattr(RayParams, "__init__", partialmethod(RayParams.__init__, dashboard_agent_listen_port=0))
        jobs = any("job_server" in getattr(item, "fixturenames", ()) for item in request.session.items)
        with runtime.session(dashboard=jobs) as address, runtime.session():  # to the tests it is one that stays
            Path(folder, "ray", "ray_current_cluster").write_text(ray.get_runtime_context().gcs_address)
            yield f"http://{address}"


@pytest.fixture(scope="session")
def job_server(ray_session) -> str:
    """Where jobs are submitted to the Ray of the tests."""
    return ray_session


def real_data(name: str) -> Path:
    """A folder of real data. Where it is absent, tests that use it are skipped; in CI that is a failure."""
    folder = DATA / name
    if not folder.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have the real data at {folder}")
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """CIFAR-10 as Parquet."""
    return real_data("cifar10")


def readme_python(word: str) -> str:
    """The block of Python in the README that holds a word."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (block,) = [block for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if word in block]
    return block


def png(pixels: np.ndarray) -> bytes:
    """Pixels (H, W) or (H, W, 3), uint8, as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def digits() -> pa.Table:
    """400 of scikit-learn's handwritten digits: real images, 8 x 8, with `image`, `label` and `name`."""
    found = load_digits()
    images = [png((image * 255 / 16).astype(np.uint8)) for image in found.images[:400]]
    return pa.table(
        {
            "image": pa.array(images, pa.binary()),
            "label": pa.array(found.target[:400], pa.int64()),
            "name": [f"digit-{index:04d}" for index in range(400)],
        }
    )


def catalog_of(sizes: tuple[int, ...], num_samples: int, unknown: dict[str, int] | None = None) -> Catalog:
    """What a look at an input of one shard may have found: classes a, b, ... of these sizes, and unknown labels."""
    from razor_ray import schema
    from razor_ray.config import InputConfig
    from razor_ray.shards import Source
    from razor_ray.stages.catalog import Catalog

    shards = {"shard_id": [0], "path": ["a"], "num_bytes": [1], "fingerprint": ["f"], "num_samples": [num_samples]}
    table = schema.table(shards | {"group_rows": [[num_samples]], "group_offsets": [[]]}, schema.CATALOG, "catalog")
    names = tuple("abcdefgh"[: len(sizes)])
    source = Source(pafs.LocalFileSystem(), "in", ("a",), (1,))
    return Catalog(source, InputConfig(path="in"), table, names, "integer", 8, tuple(sizes), unknown or {})


class FailingStore(pafs.FSSpecHandler):
    """Local files by way of fsspec, in a store of which the calls that are named here by number fail, from 0 on."""

    def __init__(self, failing: Container[int]) -> None:
        super().__init__(fsspec.filesystem("file"))
        self.failing, self.num_calls = failing, 0

    def check(self) -> None:
        """Count a call, and fail if it is to."""
        number, self.num_calls = self.num_calls, self.num_calls + 1
        if number in self.failing:
            raise OSError("503 Slow Down")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.PythonFile:
        file = super().open_input_file(path)
        return pa.PythonFile(_FailingFile(file, self.check), mode="r")


class _FailingFile:
    def __init__(self, file: pa.NativeFile, check: Callable[[], None]) -> None:
        self._file, self._check = file, check
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    @property
    def closed(self) -> bool:
        return self._file.closed

    def read(self, size: int = -1) -> bytes:
        self._check()
        return self._file.read(None if size < 0 else size)


def write_shards(table: pa.Table, folder: Path, num_shards: int, row_group_size: int = 60) -> Path:
    """A table as that many Parquet shards of nearly equal size, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, table.num_rows, num_shards + 1).astype(int)
    for shard in range(num_shards):
        part = table.slice(bounds[shard], bounds[shard + 1] - bounds[shard])
        pq.write_table(part, folder / f"train-{shard:05d}.parquet", row_group_size=row_group_size)
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar of regular files, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_tars(table: pa.Table, folder: Path, num_shards: int) -> Path:
    """The same table as WebDataset tars: name.png and name.cls, in order."""
    bounds = np.linspace(0, table.num_rows, num_shards + 1).astype(int)
    for shard in range(num_shards):
        members = []
        for row in table.slice(bounds[shard], bounds[shard + 1] - bounds[shard]).to_pylist():
            members += [(f"{row['name']}.cls", str(row["label"]).encode()), (f"{row['name']}.png", row["image"])]
        write_tar(folder / f"train-{shard:05d}.tar", members)
    return folder


def write_folders(table: pa.Table, folder: Path, suffix: str = "png") -> Path:
    """The same table as class folders: label/name.png."""
    for row in table.to_pylist():
        (folder / str(row["label"])).mkdir(parents=True, exist_ok=True)
        (folder / str(row["label"]) / f"{row['name']}.{suffix}").write_bytes(row["image"])
    return folder
