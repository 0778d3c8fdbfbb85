"""A run in which nothing happens stops, and says what it was waiting for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray.data import DataContext

from razor_ray import progress
from razor_ray.interrupt import Stop, StoppedError
from razor_ray.stages import runtime

_LATER_SECONDS = 60.0
"""Ray Data has a watchdog of its own that knows less to tell: it comes after ours."""


@contextmanager
def watch(stall_timeout: float, stop: Stop) -> Iterator[None]:
    """Stop what is done in this block when no stage gives a sign of life.

    Parameters
    ----------
    stall_timeout : float
        In seconds.
    stop : callable
        Of `interrupt.interruptible`.
    """
    DataContext.get_current().execution_no_progress_timeout_s = stall_timeout + _LATER_SECONDS
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(min(stall_timeout / 10, 5.0)):
            if progress.idle_seconds() >= stall_timeout:
                stop(_stalled(stall_timeout))
                return

    progress.sign_of_life()
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _stalled(stall_timeout: float) -> StoppedError:
    tasks = f" Tasks that have not ended: {tasks}." if (tasks := runtime.in_flight()) else ""
    return StoppedError(
        f"nothing was finished in {stall_timeout:g} s, {progress.under_way()}.{tasks} The cluster has "
        f"{runtime.resources()}. The same command goes on from what is finished; --stall-timeout gives it longer."
    )
