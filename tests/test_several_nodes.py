"""A cluster of several nodes on this machine, some of which go while they are at work."""

from __future__ import annotations

import json
import os
import sys
import tempfile

import pyarrow.parquet as pq
import pytest
import torch

from razor_ray import model
from tests import chaos
from tests.conftest import write_shards

NUM_SHARDS = 12
SECONDS = 900


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 60)
def test_nodes_and_workers_that_go(tmp_path, digits):
    """Scoring and sampling lose a node each, training loses a worker: see `tests/faults/cluster.py`."""
    write_shards(chaos.with_bad_images(digits), tmp_path / "in", NUM_SHARDS)
    torch.manual_seed(0)
    (tmp_path / "proxy.safetensors").write_bytes(model.save_weights(model.build("resnet9", 10)))
    faults = {
        "log": str(tmp_path / "log"),
        "slow": 0.3,
        "fault": "kill",
        "when": "open " + str(tmp_path / "trained/train/state.pt"),
        "nth": 2,
    }
    with tempfile.TemporaryDirectory(prefix="ray-") as short:  # paths of sockets have a limit
        environment = os.environ | {
            "PYTHONPATH": f"{chaos.FAULTS}:{chaos.REPOSITORY}",
            "FAULTS": json.dumps(faults),
            "RAY_TMPDIR": short,
        }
        command = [sys.executable, str(chaos.FAULTS / "cluster.py"), str(tmp_path)]
        ended = chaos.run(command, environment, SECONDS)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    assert ended.stdout.count("a node was lost") == 2
    scored = [line for line in chaos.scored(tmp_path / "log") if "/nodes/" in line]
    assert len(set(scored)) == NUM_SHARDS
    assert len(scored) - NUM_SHARDS <= 2  # what the lost node had in hand
    manifest = json.loads((tmp_path / "nodes/manifest.json").read_text())
    assert manifest["counts"] == {"input": 400, "scored": 397, "kept": 119, "dropped": 278, "quarantined": 3}
    # One actor, to whom nothing happens, finds the same.
    assert chaos.result(tmp_path / "nodes") == chaos.result(tmp_path / "undisturbed")
    assert chaos.was_killed(tmp_path / "log")
    lines = [json.loads(line) for line in (tmp_path / "trained/train/metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["num_samples"]) for line in lines] == [(1, 400), (2, 400), (3, 400)]
    # From the checkpoint of the first epoch, not from the start.
    assert chaos.steps(tmp_path / "log").count(f"done {tmp_path}/trained/train/state.pt") == 3
    assert pq.read_table(tmp_path / "nodes/subset").num_rows == 119
