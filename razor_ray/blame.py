"""Whose error a ValueError is: ours, which tells a user what to mend, or one of other code that we called."""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = __name__.partition(".")[0]
_HERE = Path(__file__).parent

_FILE = re.compile(r'File "([^"]*)", line')


def is_ours(error: BaseException) -> bool:
    """Whether an error was raised by a module of this package, here or in a task.

    Parameters
    ----------
    error : BaseException
        As it was caught; Ray's errors of tasks have a `cause`, and the traceback from there as their text.

    Returns
    -------
    bool
        True also of the classes of errors that this package has, whoever raised them.
    """
    cause = getattr(error, "cause", error)
    if type(cause).__module__.partition(".")[0] == _PACKAGE:
        return True
    if cause is not error:
        return ends_in_ours(str(error))
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is None or last.tb_frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE


def ends_in_ours(text: str) -> bool:
    """Whether the last frame of a traceback that is text is of this package."""
    files = _FILE.findall(text)
    return bool(files) and _is_of_package(files[-1])


def _is_of_package(file: str) -> bool:
    """Whether a path, on whatever node, is of one of this package's modules: not of another in a folder of its name."""
    parts = Path(file).parts
    return any(
        part == _PACKAGE and _HERE.joinpath(*parts[place + 1 :]).is_file() for place, part in enumerate(parts[:-1])
    )
