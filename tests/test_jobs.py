"""The same runs as jobs: through Ray's job API, followed to their end."""

import json
import shlex
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from ray.job_submission import JobSubmissionClient

from razor_ray import model
from razor_ray.cli import main
from tests.conftest import write_shards

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def working_dir(tmp_path) -> str:
    """What a job needs of the checkout, and something of its own: jobs of equal content share one upload, which Ray
    deletes when the first of them ends."""
    for folder in ("razor_ray", "jobs"):
        shutil.copytree(REPOSITORY / folder, tmp_path / "ship" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ship" / "unique").write_text(str(tmp_path))
    return str(tmp_path / "ship")


@pytest.fixture(scope="module")
def request_to_prune(tmp_path_factory, digits) -> list[str]:
    """Arguments of `prune` but for the output; the proxy is given, so that nothing is trained."""
    folder = tmp_path_factory.mktemp("jobs")
    torch.manual_seed(0)
    (folder / "proxy.safetensors").write_bytes(model.save_weights(model.build("resnet9", 10)))
    path = write_shards(digits, folder / "in", 2)
    return [
        "--input",
        str(path),
        "--proxy.weights",
        f"{folder}/proxy.safetensors",
        "--keep-fraction",
        "0.3",
        "--score.num-workers",
        "1",
    ]


def test_submitted_with_address(ray_session, request_to_prune, working_dir, tmp_path, capfd):
    arguments = [*request_to_prune, "--output", str(tmp_path / "run"), "--address", ray_session]
    assert main(["prune", *arguments, "--working-dir", working_dir]) == 0
    shown = capfd.readouterr()
    assert "120 of 400 samples" in shown.out  # the job's own last line, followed from here
    assert "succeeded" in shown.err
    assert pq.read_table(tmp_path / "run/subset").num_rows == 120


def test_a_job_that_fails_is_a_failure_here(ray_session, request_to_prune, working_dir, tmp_path, capfd):
    arguments = ["--input", str(tmp_path / "nothing"), *request_to_prune[2:], "--output", str(tmp_path / "run")]
    assert main(["prune", *arguments, "--address", ray_session, "--working-dir", working_dir]) == 1
    shown = capfd.readouterr()
    assert "there is no" in shown.out
    assert "failed" in shown.err


def test_no_cluster_there(request_to_prune, tmp_path, capfd):
    arguments = [*request_to_prune, "--output", str(tmp_path / "run"), "--address", "http://127.0.0.1:9"]
    assert main(["prune", *arguments]) == 2
    assert "cannot reach a Ray cluster" in capfd.readouterr().err


@pytest.mark.timeout(600)  # three Python processes that load torch one after the other
def test_job_scripts(ray_session, request_to_prune, working_dir, tmp_path):
    # prune.py is the other script but for a word, and what it does was done above: here, that it starts.
    train = ["python", "jobs/train.py", "--input", request_to_prune[1], "--eval", request_to_prune[1]]
    train += ["--output", str(tmp_path / "trained"), "--epochs", "2"]
    client = JobSubmissionClient(ray_session)
    entrypoint = f"python jobs/prune.py --help && {shlex.join(train)}"
    job = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": working_dir})
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.5)
    assert client.get_job_status(job).value == "SUCCEEDED", client.get_job_logs(job)
    assert "--keep-fraction" in client.get_job_logs(job)
    lines = (tmp_path / "trained/train/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["num_samples"] for line in lines] == [400, 400]
