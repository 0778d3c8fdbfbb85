"""`make chaos`: runs that are killed at random points of all stages, and begun again. Up to an hour on two cores.

By hand, since it takes so long; `tests/test_chaos.py` is the short form. A failing seed alone:
`pytest tests/chaos_long.py -k 'seed17'`.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests import chaos
from tests.conftest import write_shards

NUM_POINTS = 30


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits) -> tuple[Path, Path]:
    """Input, and a run that nothing happened to: two ISPL rounds of a proxy that is trained."""
    folder = tmp_path_factory.mktemp("chaos")
    path = write_shards(chaos.with_bad_images(digits), folder / "in", 6)
    ended = chaos.begin(arguments(path, folder / "whole"), folder / "log")
    assert ended.returncode == 0, ended.stderr
    return path, folder


def arguments(path: Path, output: Path) -> list[str]:
    options = ["--keep-fraction", "0.3", "--rounds", "2", "--proxy.epochs", "2", "--max-quarantine-fraction", "0.02"]
    options += ["--score.num-workers", "2"]
    return ["prune", "--input", str(path), "--output", str(output), *options]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"seed{seed}") for seed in range(NUM_POINTS)])
def test_killed_and_begun_again(whole, tmp_path, seed):
    path, folder = whole
    steps = chaos.steps(folder / "log")
    # One point of each stretch of the run, so that no stage is spared; every sixth time the disk is full instead, every
    # sixth the store fails, and every third the driver dies, whoever writes.
    low, high = (len(steps) * number // NUM_POINTS for number in (seed, seed + 1))
    place = random.Random(seed).randrange(low, high)
    point = chaos.at(place, steps, folder / "whole", tmp_path / "run")
    fault = {5: "full", 2: "error", 1: "kill driver", 4: "kill driver"}.get(seed % 6, "kill")
    command = arguments(path, tmp_path / "run")
    first = chaos.begin(command, tmp_path / "first", fault=fault, **point)
    print(f"{fault} at {place} of {len(steps)}, {steps[place]}: status {first.returncode}")
    # Ray itself begins a task or an actor again that was killed; only the driver's death ends a run.
    assert first.returncode in {"kill": (0, -9), "kill driver": (-9,)}.get(fault, (1,)), first.stderr
    assert chaos.was_killed(tmp_path / "first") == fault.startswith("kill"), f"{point} never came"
    if fault == "full":
        assert "no space left on the disk" in first.stderr
    if not fault.startswith("kill"):
        assert "the same command goes on" in first.stderr
    second = chaos.begin(command, tmp_path / "second")
    assert second.returncode == 0, second.stderr
    assert chaos.result(tmp_path / "run") == chaos.result(folder / "whole")
    scored = chaos.scored(tmp_path / "first") + chaos.scored(tmp_path / "second")
    # None that was finished is scored again, but for that of an actor that is killed before it can say so, or of the
    # two whose driver is.
    assert len(scored) - len(set(scored)) <= {"kill": 1, "kill driver": 2}.get(fault, 0)


@pytest.mark.timeout(600)
def test_asked_to_stop_again_and_again(tmp_path, digits):
    """Ctrl-C and SIGTERM, in training and in scoring; the result is then as of a run that nobody stopped."""
    requests = [(stage, request) for stage in ("train", "score") for request in (signal.SIGTERM, signal.SIGINT)]
    chaos.assert_stops_when_asked(tmp_path, digits, requests)
    arguments = ["prune", "--input", str(tmp_path / "in"), "--keep-fraction", "0.3"]
    arguments += ["--proxy.epochs", str(chaos.NUM_EPOCHS), "--output"]
    for output, log in (("run", "log"), ("whole", "log-whole")):
        ended = chaos.begin([*arguments, str(tmp_path / output)], tmp_path / log)
        assert ended.returncode == 0, ended.stderr
    chaos.assert_nothing_twice(tmp_path / "log")
    assert len(chaos.scored(tmp_path / "log")) == 12
    assert chaos.result(tmp_path / "run") == chaos.result(tmp_path / "whole")
