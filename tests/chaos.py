"""Runs that are killed at a write, and begun again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import write_shards

REPOSITORY = Path(__file__).parents[1]
FAULTS = REPOSITORY / "tests" / "faults"
SECONDS = 280
"""That a run may take, lest one that hangs holds up everything."""

NUM_EPOCHS = 8
"""Of the proxy of a run that is asked to stop: enough for a signal to meet one."""


def begin(arguments: list[str], log: Path, **faults: str | int) -> subprocess.CompletedProcess[str]:
    """Run `razor-ray` in a process and with a Ray of its own, with faults as `tests/faults` describes them."""
    return run(*with_faults(arguments, log, **faults), SECONDS)


def with_faults(arguments: list[str], log: Path, **faults: str | float) -> tuple[list[str], dict[str, str]]:
    """The command, and the environment in which it meets the faults."""
    environment = os.environ | {
        "PYTHONPATH": f"{FAULTS}:{REPOSITORY}",
        "FAULTS": json.dumps({"log": str(log)} | faults),
    }
    return [sys.executable, "-m", "razor_ray.cli", *arguments], environment


def run(command: list[str], environment: dict[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a process that starts a Ray of its own; after so many seconds it is ended, with all that it started."""
    started = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = started.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        out, err = started.communicate()
        raise AssertionError(f"not at its end after {seconds} s: {out[-3000:]} {err[-3000:]}") from None
    return subprocess.CompletedProcess(command, started.returncode, out, err)


def steps(log: Path) -> list[str]:
    """What was written, in order: 'open', 'close', 'done', 'commit' or 'committed', and the path."""
    return [line.split(" ", 1)[1] for line in log.read_text().splitlines()] if log.exists() else []


def at(place: int, steps: list[str], whole: Path, run: Path) -> dict[str, str | int]:
    """Which fault to ask for, to meet the step at a place of another run's: by its path, since a run that goes on takes
    fewer steps, and one whose actors are begun again takes more."""
    return {"when": steps[place].replace(str(whole), str(run)), "nth": steps[: place + 1].count(steps[place])}


def was_killed(log: Path) -> bool:
    """Whether the fault `kill` has met its step."""
    return log.with_name(log.name + ".killed").exists()


def result(run: Path) -> dict[str, pa.Table]:
    """All that a run is for, by the name of the file."""
    files = [path for stage in ("selection", "subset") for path in sorted((run / stage).glob("*.parquet"))]
    assert files
    return {f"{path.parent.name}/{path.name}": pq.read_table(path) for path in files}


def scored(log: Path) -> list[str]:
    """Files of scores that were written to their end, as often as they were; those of each round."""
    return [line for line in steps(log) if line.startswith("done ") and "scores/part-" in line]


def with_bad_images(table: pa.Table) -> pa.Table:
    """Some images that cannot be used, in several shards."""
    encoded = table["image"].to_pylist()
    for row in (3, 150, 390):
        encoded[row] = b"no image"
    return table.set_column(0, "image", pa.array(encoded, pa.binary()))


def assert_stops_when_asked(folder: Path, digits: pa.Table, requests: list[tuple[str, signal.Signals]]) -> None:
    """Send signals to a run while it trains its proxy ('train') or scores ('score'), each of which must end it: told,
    given back, no process left. Whoever goes on trains no epoch and scores no piece again."""
    path, output = write_shards(digits, folder / "in", 12), folder / "run"
    arguments = ["prune", "--input", str(path), "--output", str(output), "--keep-fraction", "0.3"]
    arguments += ["--proxy.epochs", str(NUM_EPOCHS)]
    with tempfile.TemporaryDirectory(prefix="ray-") as short:  # by which its processes are known
        for stage, request in requests:
            stop_when_asked(arguments, folder / "log", short, stage, request)
            assert not (output / "_lease.json").exists()
            assert (output / "proxy" / ".commit.json").exists() == (stage == "score")
    assert_nothing_twice(folder / "log")


def stop_when_asked(arguments: list[str], log: Path, ray_folder: str, stage: str, request: signal.Signals) -> None:
    """One run, from its beginning until it has ended by a signal."""
    command, environment = with_faults(arguments, log, slow=1.0)
    environment["RAY_TMPDIR"] = ray_folder
    num_steps = len(steps(log))
    started = subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and what it starts would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    sign = {"train": "/_proxy/state.pt", "score": "/scores/part-"}[stage]
    while not any(line.startswith("done ") and sign in line for line in steps(log)[num_steps:]):
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.05)
    started.send_signal(request)
    said = started.communicate(timeout=120)[1]
    assert started.returncode == 128 + request, said
    assert said.endswith("\nrazor-ray prune: stopped. The same command goes on from what is finished.\n")
    assert "Traceback" not in said
    end = time.monotonic() + 30
    while (left := _processes_of(ray_folder)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left


def assert_nothing_twice(log: Path) -> None:
    """Of the epochs and pieces that were finished none was finished again."""
    epochs = [line for line in steps(log) if line.startswith("done ") and line.endswith("/_proxy/state.pt")]
    assert len(epochs) == NUM_EPOCHS
    assert len(scored(log)) == len(set(scored(log)))


def _processes_of(folder: str) -> list[str]:
    """Command lines that name a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.append(file.read_text(errors="replace"))
    return [line for line in found if folder in line]
