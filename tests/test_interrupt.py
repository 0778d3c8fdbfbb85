"""A thread ends what the main thread does."""

import signal
import threading
import time

import pytest

from razor_ray import interrupt
from razor_ray.interrupt import StoppedError, interruptible


def test_a_wait_is_ended_with_the_first_reason():
    started = time.monotonic()
    with pytest.raises(StoppedError, match="^first$"), interruptible() as stop:
        threading.Timer(0.05, lambda: (stop(StoppedError("first")), stop(StoppedError("second")))).start()
        time.sleep(30)
    assert time.monotonic() - started < 10


def test_a_block_that_swallows_an_interrupt_gets_another(monkeypatch):
    monkeypatch.setattr(interrupt, "_AGAIN_SECONDS", 0.3)
    started, swallowed = time.monotonic(), False
    with pytest.raises(StoppedError, match="^reason$"), interruptible() as stop:
        threading.Timer(0.05, lambda: stop(StoppedError("reason"))).start()
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            swallowed = True
        time.sleep(30)
    assert swallowed
    assert 0.3 < time.monotonic() - started < 10


def test_where_ctrl_c_is_ignored_a_thread_is_not():
    before = signal.getsignal(signal.SIGUSR2)
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in `nohup razor-ray ... &`
    try:
        started = time.monotonic()
        with pytest.raises(StoppedError, match="^reason$"), interruptible() as stop:
            threading.Timer(0.05, lambda: stop(StoppedError("reason"))).start()
            time.sleep(30)
        assert time.monotonic() - started < 10
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert signal.getsignal(signal.SIGUSR2) == before


def test_ctrl_c_is_ctrl_c():
    with pytest.raises(KeyboardInterrupt), interruptible():
        raise KeyboardInterrupt


def test_too_late_interrupts_nothing():
    came = []
    earlier = signal.signal(signal.SIGUSR2, lambda *_: came.append("late"))
    try:
        with interruptible() as stop:
            pass
        stop(StoppedError("late"))
        time.sleep(0.1)
        assert not came
        signal.raise_signal(signal.SIGUSR2)  # it would have been seen
        assert came == ["late"]
    finally:
        signal.signal(signal.SIGUSR2, earlier)


def test_outside_the_main_thread_it_ends_with_the_reason():
    found = []

    def work():
        try:
            with interruptible() as stop:
                stop(StoppedError("reason"))
        except StoppedError as error:
            found.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["reason"]


def test_errors_of_the_block_come_out_as_they_are():
    with pytest.raises(ZeroDivisionError), interruptible():
        raise ZeroDivisionError
