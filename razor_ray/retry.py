"""A store that fails is asked again: what passes must become neither a quarantine, which is for good, nor a refusal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sized
from typing import TypeVar

PAUSES = (0.5, 2.0)
"""Seconds before what a store failed to give is asked for again."""

NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""Answers of a store, which will not be others a moment later."""

T = TypeVar("T")
Part = TypeVar("Part", bound=Sized)


def ask(question: Callable[[], T]) -> T:
    """What a store answers, asked some times.

    Raises
    ------
    OSError
        If it goes on failing.
    """
    for pause in PAUSES:
        try:
            return question()
        except NOT_THERE:
            raise
        except OSError:
            time.sleep(pause)
    return question()


def stream(parts_from: Callable[[int], Iterator[Part]]) -> Iterator[Part]:
    """What is read part by part, begun anew behind what was given when the store fails.

    Parameters
    ----------
    parts_from : callable
        Of how many items were given, to the parts that follow.

    Raises
    ------
    OSError
        If the store goes on failing.
    """
    given = 0
    pauses = iter(PAUSES)
    while True:
        try:
            for part in parts_from(given):
                yield part
                given += len(part)
            return
        except NOT_THERE:
            raise
        except OSError:
            pause = next(pauses, None)
            if pause is None:
                raise
            time.sleep(pause)
