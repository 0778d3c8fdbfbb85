"""End what the main thread does from another thread, with an error that says why."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Stop = Callable[[Exception], None]

_SIGNAL = signal.SIGUSR2
"""Not Ctrl-C's, which is ignored in a process that a script has put into the background."""

_AGAIN_SECONDS = 30.0
"""Between signals: longer than a block takes to clean up after the first."""


class StoppedError(RuntimeError):
    """A run that was ended from within; what is finished is kept, and the message says why it could not go on."""


@contextmanager
def interruptible() -> Iterator[Stop]:
    """A block that any thread can end.

    Yields
    ------
    callable
        Takes an error, which then ends the block in the place of whatever it waits for; only the first counts. A block
        that is not in the main thread, which is the only one that signals reach, ends with the error when it is done.
    """
    reasons: list[Exception] = []
    ended = threading.Event()
    lock = threading.Lock()
    is_main = threading.current_thread() is threading.main_thread()

    def stop(error: Exception) -> None:
        with lock:
            if ended.is_set() or reasons:
                return
            reasons.append(error)
        if is_main:
            threading.Thread(target=insist, daemon=True).start()

    def insist() -> None:
        # More than once if need be: an interrupt that comes while others' code cleans up may be swallowed there.
        while not ended.is_set():
            with lock:
                if not ended.is_set():
                    # A real signal: it ends system calls too, and Ray's waits heed it.
                    signal.pthread_kill(_main_ident(), _SIGNAL)
            ended.wait(_AGAIN_SECONDS)

    earlier = signal.signal(_SIGNAL, _interrupt) if is_main else None
    try:
        yield stop
        with lock:
            ended.set()
    except KeyboardInterrupt:
        if not reasons:
            raise
    finally:
        with lock:
            ended.set()
        if is_main:
            signal.signal(_SIGNAL, earlier)
    if reasons:
        raise reasons[0]


def _interrupt(signal_number: int, frame: Any) -> None:
    raise KeyboardInterrupt(signal_number)


def _main_ident() -> int:
    ident = threading.main_thread().ident
    assert ident is not None, "the main thread runs"
    return ident
