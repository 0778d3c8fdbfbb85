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
from razor_ray.config import InputConfig
from razor_ray.run_store import RunStore
from tests import chaos
from tests.conftest import write_folders, write_shards, write_tars

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

BUCKET = "razor"

Uri = Callable[[str], str]


@pytest.fixture(scope="module")
def uri() -> Iterator[Uri]:
    """Of a path in the bucket. The processes that a test starts have the credentials in their environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
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


def test_a_run_in_a_bucket_that_is_killed_ends_as_one_on_a_disk(tmp_path, digits, uri):
    path = write_shards(chaos.with_bad_images(digits), tmp_path / "in", 6)
    upload(path, uri("in"))
    options = ["--keep-fraction", "0.3", "--proxy.epochs", "2", "--max-quarantine-fraction", "0.02"]
    options += ["--score.num-workers", "2", "--subset.ids"]
    ended = chaos.begin(
        ["prune", "--input", str(path), "--output", str(tmp_path / "whole"), *options], tmp_path / "log"
    )
    assert ended.returncode == 0, ended.stderr

    command = ["prune", "--input", uri("in"), "--output", uri("run"), *options]
    logs = [tmp_path / "log-stopped", tmp_path / "log-again"]
    third = chaos.scored(tmp_path / "log")[2].rpartition("/")[2]
    point = {"fault": "kill driver", "when": f"done {BUCKET}/run/scores/{third}"}
    stopped = chaos.begin(command, logs[0], **point)
    assert chaos.was_killed(logs[0]), f"{point} never came: {chaos.steps(logs[0])}"
    assert stopped.returncode == -9, stopped.stderr
    store = RunStore(uri("run"))
    assert store.is_done("proxy") and not store.is_done("scores")
    ended = chaos.begin(command, logs[1])
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[-1] == f"done      119 of 400 samples in {uri('run/subset')}"
    assert chaos.result(download(uri("run"), tmp_path / "run")) == chaos.result(tmp_path / "whole")
    ids = [(tmp_path / name / "subset_ids.txt").read_text() for name in ("run", "whole")]
    assert ids[0] == ids[1]
    assert len(ids[0].splitlines()) == 119
    scored = [line for log in logs for line in chaos.scored(log)]
    assert len(set(scored)) == 6
    assert len(scored) - 6 <= 2  # what an actor had in hand between its two files; there are two
    assert not (tmp_path / "run" / "_lease.json").exists()

    trained = ["train", "--input", uri("run/subset"), "--eval", uri("in"), "--output", uri("trained")]
    ended = chaos.begin([*trained, "--epochs", "2", "--augment", "none"], tmp_path / "log-train")
    assert ended.returncode == 0, ended.stderr
    lines = (download(uri("trained"), tmp_path / "trained") / "train" / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    assert [(row["epoch"], row["num_samples"]) for row in epochs] == [(1, 119), (2, 119)]


def test_a_bucket_that_is_not_there_is_told(tmp_path, digits, uri):
    path = write_shards(digits.slice(0, 40), tmp_path / "in", 1)
    for place, given in (("input", uri("nowhere")), ("output", uri("run2").replace(BUCKET, "no-bucket"))):
        paths = {"input": str(path), "output": str(tmp_path / "out")} | {place: given}
        arguments = ["prune", "--keep-fraction", "0.3"]
        for name, value in paths.items():
            arguments += [f"--{name}", value]
        ended = chaos.begin(arguments, tmp_path / "log")
        assert ended.returncode in (1, 2), ended.stderr
        assert "Traceback" not in ended.stderr
        assert given.split("?")[0].removeprefix("s3://") in ended.stderr
