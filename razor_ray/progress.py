"""Progress that a person can read: the stage, samples done, the rate, the time left.

On a terminal a line that renews itself; elsewhere (a job's log, a file) a plain line every ten seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_open: list[Progress] = []
_last_sign = time.monotonic()

_SECONDS_BETWEEN_LINES = {True: 0.2, False: 10.0}  # keyed by whether the stream is a terminal


class Progress:
    """One stage's progress. Made by `stage`.

    Parameters
    ----------
    name : str
        Of the stage.
    total : int or None
        How much there is to do, if that is known.
    unit : str
        What is counted, such as 'samples'.
    stream : TextIO
    """

    def __init__(self, name: str, total: int | None, unit: str, stream: TextIO) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.skipped = 0
        self.note = ""
        self.waiting_for = ""
        """What has to come for this to advance, for the message of a run that does not."""
        self._stream = stream
        self._started = self._last_line = time.monotonic()
        self._is_terminal = stream.isatty()

    def advance(self, count: int, note: str = "") -> None:
        """Count some more as done."""
        self.done += count
        self.note = note
        sign_of_life()
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES[self._is_terminal]:
            self._last_line = now
            self._write(self._line(now), end="" if self._is_terminal else "\n")

    def skip(self, count: int) -> None:
        """Count some as done that an earlier attempt did: they tell nothing of the rate."""
        self.done += count
        self.skipped += count

    def finish(self, summary: str = "") -> None:
        """The stage's last line."""
        seconds = time.monotonic() - self._started
        unit = self.unit if self.done != 1 else self.unit.removesuffix("es" if self.unit == "classes" else "s")
        counted = f"{self.done:,} {unit}, " if self.done else ""
        self._write(f"{self.name:<10}{counted}{_duration(seconds)}{'; ' + summary if summary else ''}", end="\n")

    def abandon(self) -> None:
        """Leave the line that renews itself, so that what is said next begins on one of its own."""
        if self._is_terminal and self.done:
            print(file=self._stream, flush=True)

    def _line(self, now: float) -> str:
        seconds = now - self._started
        rate = (self.done - self.skipped) / seconds if seconds > 0 else 0.0
        of_total = f" of {self.total:,} ({self.done / self.total:.0%})" if self.total else ""
        left = f", {_duration((self.total - self.done) / rate)} left" if self.total and rate else ""
        note = f", {self.note}" if self.note else ""
        return f"{self.name:<10}{self.done:,}{of_total} {self.unit}, {_rate(rate)}/s{left}{note}"

    def _write(self, text: str, end: str) -> None:
        start = "\r\x1b[K" if self._is_terminal else ""
        print(start + text, end=end, file=self._stream, flush=True)


@contextmanager
def stage(name: str, total: int | None = None, unit: str = "samples") -> Iterator[Progress]:
    """Show a stage's progress on standard error, and its last line when it ends well."""
    progress = Progress(name, total, unit, sys.stderr)
    _open.append(progress)
    sign_of_life()
    try:
        yield progress
    except BaseException:
        progress.abandon()
        raise
    finally:
        _open.remove(progress)
        sign_of_life()
    progress.finish(progress.note)


def sign_of_life() -> None:
    """Something went on, if perhaps nothing that is counted."""
    global _last_sign
    _last_sign = time.monotonic()


def idle_seconds() -> float:
    """Seconds since the last sign of life of any stage."""
    return time.monotonic() - _last_sign


def under_way() -> str:
    """The stage that is under way and what it waits for, in words."""
    if not _open:
        return "between two stages"
    last = _open[-1]
    of_total = f" of {last.total:,}" if last.total else ""
    waiting = f", waiting for {last.waiting_for}" if last.waiting_for else ""
    return f"in stage {last.name} ({last.done:,}{of_total} {last.unit} done{waiting})"


def say(text: str) -> None:
    """A line for the person who runs this."""
    print(text, file=sys.stderr, flush=True)


def size_in_words(num_bytes: int) -> str:
    """Bytes as a person reads them.

    >>> [size_in_words(number) for number in (0, 1023, 1024, 51_300, 14_155_776, 3 * 2**40)]
    ['0 bytes', '1,023 bytes', '1.0 KiB', '50.1 KiB', '13.5 MiB', '3,072.0 GiB']
    """
    if num_bytes < 2**10:
        return f"{num_bytes:,} bytes"
    power = next((power for power in (1, 2) if num_bytes < 2 ** (10 * (power + 1))), 3)
    return f"{num_bytes / 2 ** (10 * power):,.1f} {' KMG'[power]}iB"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
