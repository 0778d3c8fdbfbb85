"""The short form of `make chaos`: one run that is stopped in three ways, begun again each time, and ends the same."""

from __future__ import annotations

import random

import pytest

from tests import chaos
from tests.conftest import write_shards


@pytest.mark.timeout(600)
def test_a_run_that_is_stopped_three_times_ends_the_same(tmp_path, digits):
    path = write_shards(chaos.with_bad_images(digits), tmp_path / "in", 6)
    options = ["--keep-fraction", "0.3", "--proxy.epochs", "2", "--max-quarantine-fraction", "0.02"]
    command = ["prune", "--input", str(path), *options, "--output"]
    ended = chaos.begin([*command, str(tmp_path / "whole")], tmp_path / "log")
    assert ended.returncode == 0, ended.stderr
    steps = chaos.steps(tmp_path / "log")
    random_source = random.Random(0)
    logs = []
    # In the middle of the proxy's training, of scoring, and of sampling: of what is written there, any step.
    for number, (stage, fault) in enumerate((("/_proxy/", "kill"), ("/scores/part-", "full"), ("/selection/", "kill"))):
        done = sum(len(chaos.steps(log)) for log in logs)
        at = random_source.choice([place for place, step in enumerate(steps, 1) if stage in step])
        logs.append(tmp_path / f"log-{number}")
        stopped = chaos.begin([*command, str(tmp_path / "run")], logs[-1], **{fault: max(at - done, 1)})
        assert stopped.returncode in ((1,) if fault == "full" else (0, -9)), stopped.stderr
        if fault == "full":
            assert "no space left on the disk" in stopped.stderr
            assert "the same command goes on" in stopped.stderr
    logs.append(tmp_path / "log-last")
    ended = chaos.begin([*command, str(tmp_path / "run")], logs[-1])
    assert ended.returncode == 0, ended.stderr
    assert chaos.result(tmp_path / "run") == chaos.result(tmp_path / "whole")
    scored = [line for log in logs for line in chaos.scored(log)]
    assert len(scored) >= len(set(scored)) == 6
    assert len(scored) - len(set(scored)) <= 2 * len(logs[:-1])
