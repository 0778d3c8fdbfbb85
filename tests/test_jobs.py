"""The same runs as jobs: through Ray's job API, followed to their end."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from ray.job_submission import JobSubmissionClient

from razor_ray import images, model
from razor_ray.cli import main
from razor_ray.training import predict
from tests import chaos
from tests.conftest import write_shards

REPOSITORY = Path(__file__).parents[1]


def ship(folder: Path) -> str:
    """What a job needs of the checkout, and something of its own: jobs of equal content share one upload, which Ray
    deletes when the first of them ends."""
    for part in ("razor_ray", "jobs"):
        shutil.copytree(REPOSITORY / part, folder / "ship" / part, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "ship" / "unique").write_text(str(folder))
    return str(folder / "ship")


@pytest.fixture
def working_dir(tmp_path) -> str:
    return ship(tmp_path)


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


@pytest.fixture(scope="module")
def undisturbed(job_server, request_to_prune, tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """`razor-ray prune --address`, and the run that it left, which nothing befell."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "razor_ray.cli", "prune", *request_to_prune, "--output", str(folder / "run")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return chaos.run(
        [*command, "--address", job_server, "--working-dir", ship(folder)], environment, 280
    ), folder / "run"


@pytest.mark.system
def test_submitted_with_address(undisturbed):
    ended, run = undisturbed
    assert ended.returncode == 0, ended.stderr
    assert "120 of 400 samples" in ended.stdout  # the job's own last line, followed from here
    assert "succeeded" in ended.stderr
    assert pq.read_table(run / "subset").num_rows == 120


@pytest.mark.system
def test_a_job_that_fails_is_a_failure_here(job_server, request_to_prune, working_dir, tmp_path, capfd):
    arguments = ["--input", str(tmp_path / "nothing"), *request_to_prune[2:], "--output", str(tmp_path / "run")]
    # Refused, so not submitted again.
    options = ["--address", job_server, "--working-dir", working_dir, "--max-restarts", "3"]
    assert main(["prune", *arguments, *options]) == 2
    shown = capfd.readouterr()
    assert "there is no" in shown.out
    assert shown.err.count("failed") == 1


@pytest.mark.system
@pytest.mark.timeout(600)
def test_a_job_that_is_killed_half_way_and_submitted_again(
    job_server, request_to_prune, undisturbed, working_dir, tmp_path
):
    """Submitted, its driver killed while it works, submitted again: the same subset as of a run that nothing befell."""
    script = ["python", "jobs/prune.py", *request_to_prune, "--output", str(tmp_path / "run")]
    client = JobSubmissionClient(job_server)

    def submit() -> str:
        return client.submit_job(entrypoint=shlex.join(script), runtime_env={"working_dir": working_dir})

    job = submit()
    while not (tmp_path / "run/proxy/.commit.json").exists():  # scoring is next
        assert not client.get_job_status(job).is_terminal(), client.get_job_logs(job)
        time.sleep(0.05)
    os.kill(json.loads((tmp_path / "run/_lease.json").read_text())["pid"], signal.SIGKILL)
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.2)
    assert client.get_job_status(job).value == "FAILED"
    # As a shell tells it, where it is one that starts the driver.
    assert client.get_job_info(job).driver_exit_code in (128 + signal.SIGKILL, -signal.SIGKILL)
    assert (tmp_path / "run/_lease.json").exists()  # of a dead process, which does not hold up the next
    job = submit()
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.2)
    assert client.get_job_status(job).value == "SUCCEEDED", client.get_job_logs(job)
    assert client.get_job_info(job).driver_exit_code == 0
    assert "catalog   done before, skipped" in client.get_job_logs(job)
    assert not (tmp_path / "run/_lease.json").exists()
    assert chaos.result(tmp_path / "run") == chaos.result(undisturbed[1])


@pytest.mark.system
@pytest.mark.timeout(600)
def test_a_job_whose_driver_is_killed_is_restarted_by_who_follows_it(
    job_server, request_to_prune, undisturbed, working_dir, tmp_path, capfd
):
    run = tmp_path / "run"

    def kill() -> None:
        while not (run / "proxy/.commit.json").exists():  # scoring is next
            time.sleep(0.05)
        os.kill(json.loads((run / "_lease.json").read_text())["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    options = ["--address", job_server, "--working-dir", working_dir, "--max-restarts", "2"]
    assert main(["prune", *request_to_prune, "--output", str(run), *options]) == 0
    killer.join(timeout=0)
    assert not killer.is_alive()
    shown = capfd.readouterr()
    assert shown.err.count("restart ") == shown.err.count(" failed") == 1
    assert "proxy     done before, skipped" in shown.out
    assert chaos.result(run) == chaos.result(undisturbed[1])


def test_no_cluster_there(request_to_prune, tmp_path, capfd):
    arguments = [*request_to_prune, "--output", str(tmp_path / "run"), "--address", "http://127.0.0.1:9"]
    assert main(["prune", *arguments]) == 2
    assert "cannot reach a Ray cluster" in capfd.readouterr().err


@pytest.mark.system
@pytest.mark.timeout(600)  # four Python processes that load torch
def test_train_script_with_two_workers_counts_every_sample(job_server, digits, working_dir, tmp_path):
    write_shards(digits.slice(0, 299), tmp_path / "odd", 3)  # an equal split of 299 drops one
    write_shards(digits.slice(300), tmp_path / "test", 2)
    script = ["python", "jobs/train.py", "--input", f"{tmp_path}/odd", "--eval", f"{tmp_path}/test"]
    script += ["--output", f"{tmp_path}/trained", "--epochs", "2", "--num-workers", "2", "--augment", "none"]
    script += ["--cache-gib", "0"]  # each epoch is a stream of its own, split anew
    client = JobSubmissionClient(job_server)
    job = client.submit_job(entrypoint=shlex.join(script), runtime_env={"working_dir": working_dir})
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.5)
    assert client.get_job_status(job).value == "SUCCEEDED", client.get_job_logs(job)
    assert "note      1 left over of every pass" in client.get_job_logs(job)
    lines = [json.loads(line) for line in (tmp_path / "trained/train/metrics.jsonl").read_text().splitlines()]
    assert [(line["num_samples"], line["num_dropped"]) for line in lines] == [(298, 1)] * 2
    assert lines[-1]["num_eval"] == 100  # of the held-out none is dropped
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    # What was measured, by both workers, is the network that was kept.
    network = model.build("resnet9", 10)
    model.load_weights(network, (tmp_path / "trained/train/model.safetensors").read_bytes(), "model.safetensors")
    held_out = pq.read_table(tmp_path / "test")
    pixels = torch.from_numpy(images.decode_batch(held_out["image"].to_pylist(), 8)[0])
    precision = json.loads((tmp_path / "trained/train/model.json").read_text())["precision"]
    found = predict(network, pixels, precision=precision, device=torch.device("cpu")).tolist()
    num_right = sum(one == other for one, other in zip(found, held_out["label"].to_pylist(), strict=True))
    assert num_right == round(100 * lines[-1]["accuracy"])


def test_prune_script_takes_what_the_command_takes():
    # What it then does is done above: the script is the command but for the verb.
    shown = subprocess.run(
        [sys.executable, REPOSITORY / "jobs" / "prune.py", "--help"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},  # as Ray sets it for a working_dir
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert "--keep-fraction" in shown.stdout
    assert "--config" in shown.stdout
