"""A run in which nothing happens."""

import time

import pytest
from ray.data import DataContext

from razor_ray.interrupt import StoppedError, interruptible
from razor_ray.progress import stage
from razor_ray.stages import runtime
from razor_ray.stages.watchdog import watch

pytestmark = pytest.mark.usefixtures("ray_session")


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_it_says_what_it_was_waiting_for():
    list(runtime.run_tasks(sleep, [(0.0,), (0.0,), (0.0,)], name="warm up"))
    started = time.monotonic()
    said = (
        r"nothing was finished in 4 s, in stage score \(2 of 8 samples done, waiting for an actor of 2 CPU\). Tasks "
        r"that have not ended: \d of 'sleeping'. The cluster has \d+ CPU \(\S+ free\), 0 GPU .* on 1 node. "
        r"The same command goes on .* --stall-timeout"
    )
    stalled = pytest.raises(StoppedError, match=said)
    with stalled, interruptible() as stop, watch(4.0, stop), stage("score", 8) as progress:
        progress.waiting_for = "an actor of 2 CPU"
        for _ in runtime.run_tasks(sleep, [(0.0,), (0.0,), (60.0,)], name="sleeping"):
            progress.advance(1)
    assert time.monotonic() - started < 30


def test_slow_is_not_stalled():
    with interruptible() as stop, watch(5.0, stop), stage("score", 12) as progress:
        for _ in range(12):  # in all more than the watchdog waits
            time.sleep(0.5)
            progress.advance(1)
        assert DataContext.get_current().execution_no_progress_timeout_s == 65.0  # Ray Data's own, behind ours
    assert progress.done == 12
