"""A bucket: inputs, a run that is killed and goes on, and a training, over the protocol of S3.

The server is moto's, on this machine; what speaks to it is what speaks to any S3.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

from razor_ray import shards, sources
from razor_ray.cli import main
from razor_ray.config import InputConfig
from razor_ray.run_store import RunStore
from tests import chaos
from tests.conftest import write_folders, write_shards, write_tars

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

BUCKET = "razor"

Uri = Callable[[str], str]


@pytest.fixture(scope="module")
def uri() -> Iterator[Uri]:
    """Of a path in the bucket. Credentials are in the environment, of Ray's workers too: see conftest.py."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for every request
    host, port = server.get_host_and_port()
    options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}"
    filesystem, _ = pafs.FileSystem.from_uri(f"s3://{BUCKET}?allow_bucket_creation=true&{options}")
    filesystem.create_dir(BUCKET)
    yield lambda path: f"s3://{BUCKET}/{path}?{options}"
    server.stop()


def upload(folder: Path, uri: str) -> None:
    """All files of a folder; object stores have no empty ones."""
    filesystem, base = pafs.FileSystem.from_uri(uri)
    pafs.copy_files(str(folder), base, destination_filesystem=filesystem)


def download(uri: str, folder: Path) -> Path:
    """The files below a path of the bucket."""
    filesystem, base = pafs.FileSystem.from_uri(uri)
    pafs.copy_files(base, str(folder), source_filesystem=filesystem)
    return folder


WRITERS = {
    "parquet": lambda digits, folder: write_shards(digits, folder, 2),
    "webdataset": lambda digits, folder: write_tars(digits, folder, 2),
    "folders": write_folders,
}


def read(path: str) -> tuple[sources.Source, list[pa.Table]]:
    """Every sample of an input, shard by shard."""
    config = InputConfig(path=path)
    source = sources.find(config)
    tables = []
    for shard, name in enumerate(source.paths):
        facts = sources.inspect(source, shard, config)
        for piece in shards.cut(shard, name, facts.group_rows, facts.group_offsets, 100, 50):
            tables += sources.read(source, piece, config, 50)
    return source, tables


@pytest.mark.parametrize("name", WRITERS)
def test_inputs_of_every_format_are_found_and_read(tmp_path, digits, uri, name):
    folder = WRITERS[name](digits.slice(0, 120), tmp_path / f"in-{name}")
    upload(folder, uri(folder.name))
    here, expected = read(str(folder))
    there, found = read(uri(folder.name))
    assert there.format == here.format == name
    assert there.paths == here.paths
    assert pa.concat_tables(found).num_rows == 120
    assert found == expected
    if name == "parquet":
        assert read(uri(f"{folder.name}/train-0000[1-9].parquet"))[0].paths == ("train-00001.parquet",)


@pytest.mark.usefixtures("ray_session")
def test_a_run_in_a_bucket_that_is_killed_ends_as_one_on_a_disk(tmp_path, digits, uri, capfd):
    path = write_shards(chaos.with_bad_images(digits), tmp_path / "in", 6)
    upload(path, uri("in"))
    options = ["--keep-fraction", "0.3", "--proxy.epochs", "2", "--max-quarantine-fraction", "0.02"]
    options += ["--score.num-workers", "1", "--subset.ids"]
    assert main(["prune", "--input", str(path), "--output", f"{tmp_path}/whole", *options]) == 0
    pieces = sorted(file.name for file in (tmp_path / "whole" / "scores").glob("part-*"))
    assert len(pieces) == 6

    command = ["prune", "--input", uri("in"), "--output", uri("run"), *options]
    fault = {"fault": "kill driver", "when": f"done {BUCKET}/run/scores/{pieces[3]}"}
    stopped = chaos.begin(command, tmp_path / "log", **fault)
    assert chaos.was_killed(tmp_path / "log"), f"{fault} never came: {chaos.steps(tmp_path / 'log')}"
    assert stopped.returncode == -9, stopped.stderr
    store = RunStore(uri("run"))
    assert store.is_done("proxy")
    assert not store.is_done("scores")
    before = written(store, "scores")
    assert {f"{store.root}/scores/{name}" for name in pieces[:4]} <= before.keys()

    capfd.readouterr()
    assert main(command) == 0
    assert capfd.readouterr().err.splitlines()[-1] == f"done      119 of 400 samples in {uri('run/subset')}"
    after = written(store, "scores")
    assert len(after) == 6
    assert {name: after[name] for name in before} == before  # what was there was not written again
    run = download(uri("run"), tmp_path / "run")
    assert chaos.result(run) == chaos.result(tmp_path / "whole")
    ids = [(folder / "subset_ids.txt").read_text() for folder in (run, tmp_path / "whole")]
    assert ids[0] == ids[1]
    assert len(ids[0].splitlines()) == 119
    assert not (run / "_lease.json").exists()

    paths = ["--input", uri("run/subset"), "--eval", uri("in"), "--output", uri("trained")]
    assert main(["train", *paths, "--epochs", "2", "--augment", "none"]) == 0
    lines = (download(uri("trained"), tmp_path / "trained") / "train" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["num_samples"] for line in lines] == [119, 119]


def written(store: RunStore, stage: str) -> dict[str, object]:
    """When each of a stage's pieces was written."""
    found = store.filesystem.get_file_info(pafs.FileSelector(store.path(stage)))
    return {info.path: info.mtime_ns for info in found if info.base_name.startswith("part-")}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("place", "status", "message"),
    [("input", 2, "there is no s3://no-bucket/x?"), ("output", 1, "Bucket 'no-bucket' not found")],
)
def test_a_bucket_that_is_not_there_is_told(tmp_path, digits, uri, capfd, place, status, message):
    path = write_shards(digits.slice(0, 40), tmp_path / "in", 1)
    missing = uri("x").replace(BUCKET, "no-bucket")
    paths = {"input": str(path), "output": f"{tmp_path}/out"} | {place: missing}
    arguments = ["prune", "--keep-fraction", "0.3", *(f"--{name}={value}" for name, value in paths.items())]
    assert main(arguments) == status
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
