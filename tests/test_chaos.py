"""The short form of `make chaos`: a run that is stopped, begun again, and ends the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import chaos
from tests.conftest import write_shards


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("stage", "fault"),
    # At any step of what the driver writes while it trains the proxy, and of what actors write while they score.
    [pytest.param("/_proxy/", "kill", marks=pytest.mark.long), ("/scores/part-", "kill driver")],
    ids=["train", "score"],
)
def test_a_run_that_is_stopped_ends_the_same(tmp_path, digits, stage, fault):
    path = write_shards(chaos.with_bad_images(digits), tmp_path / "in", 6)
    options = ["--keep-fraction", "0.3", "--proxy.epochs", "2", "--max-quarantine-fraction", "0.02"]
    options += ["--score.num-workers", "2"]
    command = ["prune", "--input", str(path), *options, "--output"]
    ended = chaos.begin([*command, str(tmp_path / "whole")], tmp_path / "log")
    assert ended.returncode == 0, ended.stderr
    assert_told(ended, tmp_path / "whole")
    steps = chaos.steps(tmp_path / "log")
    place = random.Random(0).choice([place for place, step in enumerate(steps) if stage in step])
    point = chaos.at(place, steps, tmp_path / "whole", tmp_path / "run")
    logs = [tmp_path / "log-stopped", tmp_path / "log-again"]
    stopped = chaos.begin([*command, str(tmp_path / "run")], logs[0], fault=fault, **point)
    assert chaos.was_killed(logs[0]), f"{point} never came"
    assert stopped.returncode == -9, stopped.stderr
    ended = chaos.begin([*command, str(tmp_path / "run")], logs[1])
    assert ended.returncode == 0, ended.stderr
    assert chaos.result(tmp_path / "run") == chaos.result(tmp_path / "whole")
    scored = [line for log in logs for line in chaos.scored(log)]
    assert len(set(scored)) == 6
    assert len(scored) - 6 <= 2  # what an actor had in hand between its two files; there are two


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_that_is_asked_to_stop_says_so_and_leaves_nothing_behind(tmp_path, digits):
    """Ctrl-C while the proxy is trained, and then SIGTERM, as a scheduler sends it, to the run that goes on."""
    chaos.assert_stops_when_asked(tmp_path, digits, [("train", signal.SIGINT), ("score", signal.SIGTERM)])


def assert_told(ended: subprocess.CompletedProcess[str], run: Path) -> None:
    """A person reads the stages and at last where the result is, and nothing that Ray has to say."""
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    finished = [line.split()[0] for line in lines if "/s, " not in line]  # the rest is of a stage that is under way
    stages = ["catalog", "proxy", "score", "weigh", "sample", "subset"]
    assert finished == ["begin", *stages, "note", "report", "cost", "done"], ended.stderr  # of bad images, the note
    assert {line.split()[0] for line in lines} == set(finished)
    assert lines[-1] == f"done      119 of 400 samples in {run}/subset"


@pytest.mark.parametrize(("nth", "fault", "status"), [(2, "kill", -9), (4, "kill", 0), (2, "full", 1), (2, "error", 1)])
def test_a_fault_meets_its_step_or_it_is_told(tmp_path, nth, fault, status):
    writes = f"for _ in range(3): RunStore({str(tmp_path)!r}).write_json('a', {{}})"
    script = f"from razor_ray.run_store import RunStore\n{writes}"
    faults = {"log": str(tmp_path / "log"), "fault": fault, "when": f"open {tmp_path}/a", "nth": nth}
    environment = os.environ | {"PYTHONPATH": f"{chaos.FAULTS}:{chaos.REPOSITORY}", "FAULTS": json.dumps(faults)}
    assert chaos.run([sys.executable, "-c", script], environment, 60).returncode == status
    assert chaos.was_killed(tmp_path / "log") == (status == -9)
    found = chaos.steps(tmp_path / "log")
    assert found.count(f"open {tmp_path}/a") == min(nth, 3)
    last = len(found) - 1 - found[::-1].index(f"open {tmp_path}/a")
    assert chaos.at(last, found, tmp_path, tmp_path / "b") == {"when": f"open {tmp_path}/b/a", "nth": min(nth, 3)}
