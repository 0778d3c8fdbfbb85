"""Clocks, memory and tables that the benchmarks share."""

from __future__ import annotations

import importlib.metadata
import math
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from razor_ray.progress import say

T = TypeVar("T")
_SECONDS_BETWEEN_SAMPLES = 0.5


@dataclass(frozen=True)
class Measured:
    """What a function in a process of its own gave and took."""

    result: Any
    started: float
    """By the clock of `time.time`, before the process was started."""
    seconds: float
    """From then to its result: start of the interpreter and imports included."""
    peak_bytes: int | None
    """Of it and all its descendants together, if that was asked for."""


def in_own_process(function: Callable[..., Any], *arguments: Any, memory: bool = False) -> Measured:
    """Call a function in a fresh process, so that no contender finds what another left behind in memory or threads.

    Sampling its memory (`memory`) costs a few per cent of its speed: the kernel walks the pages of all its processes.
    """
    started = time.time()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        process = executor.submit(os.getpid).result()
        with _peak_memory(process) if memory else nullcontext() as peak:
            result = executor.submit(function, *arguments).result()
        return Measured(result, started, time.time() - started, peak[0] if peak else None)


@contextmanager
def _peak_memory(process: int) -> Iterator[list[int]]:
    """Sample the memory of a process and its descendants; the list's one element is the peak so far, in bytes."""
    peak, ended = [tree_memory(process)], threading.Event()

    def watch() -> None:
        while not ended.wait(_SECONDS_BETWEEN_SAMPLES):
            peak[0] = max(peak[0], tree_memory(process))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def tree_memory(process: int, proc: Path = Path("/proc")) -> int:
    """Proportional set size of a process and its descendants, in bytes: what they share is counted once.

    Ray's object store is shared memory, which the resident sizes of its processes would count many times.

    Parameters
    ----------
    process : int
    proc : Path
        Where the kernel's files are.
    """
    children: dict[int, list[int]] = {}
    for status in proc.glob("[0-9]*/stat"):
        try:
            # pid (name) state parent ...: the name may hold anything, so what follows its last parenthesis counts.
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
        children.setdefault(parent, []).append(int(status.parent.name))
    total, waiting = 0, [process]
    while waiting:
        each = waiting.pop()
        waiting += children.get(each, [])
        total += _memory(proc / str(each) / "smaps_rollup")
    return total


def _memory(rollup: Path) -> int:
    try:
        lines = rollup.read_text().splitlines()
    except OSError:  # ended, or a zombie
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def steady_rate(times: Sequence[float], counts: Sequence[int]) -> float:
    """Images per second once all is under way: the slope of images finished against time, by least squares.

    Unlike the images between two instants, a slope does not care whether workers finish together or by turns. The last
    tenth of the steps is left out: workers run out of work one after the other.

    Parameters
    ----------
    times : sequence of float
        When a batch or piece was finished, in seconds.
    counts : sequence of int
        Its images.

    Examples
    --------
    >>> steady_rate([10.0, 12.0, 14.0], [6, 6, 6])
    3.0
    """
    order = np.argsort(times, kind="stable")
    order = order[: len(order) - len(order) // 10]
    if len(order) < 2:
        raise ValueError(f"a rate needs at least two batches or pieces, got {len(order)}. Pass more images.")
    elapsed = np.asarray(times, np.float64)[order]
    finished = np.cumsum(np.asarray(counts)[order])
    return slope(elapsed, finished)


def slope(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Of the line through points, by least squares."""
    from_mean = np.asarray(x, np.float64) - np.mean(x)
    return float(from_mean @ np.asarray(y, np.float64) / (from_mean @ from_mean))


def growth_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The k of seconds ~ size^k: 1 is linear.

    >>> round(growth_exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    return slope(np.log(sizes), np.log(seconds))


def interleaved(contenders: dict[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Let contenders take turns, so that what else the machine does meets all of them alike."""
    found: dict[str, list[T]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name, run in contenders.items():
            measured = run()
            found[name].append(measured)
            if isinstance(measured, Measured):
                say(f"measured  {name}, {repeat + 1} of {repeats}: {measured.seconds:.1f} s with start-up")
    return found


def median(values: Iterable[float]) -> float:
    """The median, as a plain number."""
    return float(np.median(list(values)))


def num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """What a figure depends on."""
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {name: importlib.metadata.version(name) for name in ("torch", "ray", "simplejpeg")}
    return {
        "cpus": num_cpus(),
        "processor": _processor(),
        "card": card,
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def format_table(header: Sequence[str], rows: Iterable[Sequence[str | float | int]]) -> str:
    """Text with aligned columns: the first to the left, numbers to the right with three digits that count."""
    cells = [list(header), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def _text(value: str | float) -> str:
    if isinstance(value, str | int):
        return f"{value:,}" if isinstance(value, int) else value
    digits = 2 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return f"{value:,.{min(max(digits, 0), 4)}f}"


def gib(num_bytes: float | None) -> float:
    """Bytes in GiB; they must have been measured."""
    assert num_bytes is not None
    return num_bytes / 2**30
