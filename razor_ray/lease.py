"""One writer to a run's folder: a heartbeat object, without locks and without clocks that agree.

The holder rewrites ``_lease.json`` every few seconds. A newcomer that finds one watches whether it changes; only its
own clock counts how long. If it changes, someone else is at work and the newcomer is refused; if it does not, the
holder is dead and the newcomer writes its own. Of two newcomers who do so at once the last one to write stays: the
other finds a lease that is not its own, right after its write or at its next heartbeat, and yields. A lease that is
gone was another's too: it took the folder over, and has ended since.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from razor_ray.interrupt import Stop, StoppedError
from razor_ray.run_store import RunStore

LEASE = "_lease.json"
INTERVAL = 5.0
"""Seconds between heartbeats."""

_INTERVALS_WATCHED = 4
_LOOKS = 5
"""At a lease that is half-written."""
_SETTLE_SECONDS = 0.1
"""Longer than another newcomer takes from its last look to its write; where it is not, the heartbeat finds out."""


class HeldError(ValueError):
    """Another run is writing the folder; the message says whose it is."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who writes."""

    token: str
    user: str
    host: str
    pid: int
    since: str
    """By the holder's clock; for people."""
    machine: str | None
    """Tells process ids of one machine, and of one container, from those of another. None where it is not known."""
    started: str | None
    """When the process started, as its machine counts: another process may get the same id later."""
    beat: int = 0

    def __str__(self) -> str:
        return f"{self.user} on {self.host}, process {self.pid}, since {self.since}"


@contextmanager
def hold(store: RunStore, stop: Stop, *, interval: float = INTERVAL) -> Iterator[None]:
    """Be the only writer of a run's folder.

    Parameters
    ----------
    store : RunStore
        Confirms before each commit that it is still held.
    stop : callable
        Ends the run if it turns out that another has taken the folder over.
    interval : float
        Seconds between heartbeats. The same for all who write a folder.

    Raises
    ------
    HeldError
        If another run is writing the folder.
    """
    own = _acquire(store, interval)
    ended = threading.Event()
    thread = threading.Thread(target=_keep, args=(store, own, interval, ended, stop), daemon=True)
    thread.start()
    store.confirm = lambda: _confirm(store, own)
    try:
        yield
    finally:
        ended.set()
        thread.join()
        store.confirm = lambda: None
        _release(store, own)


def _acquire(store: RunStore, interval: float) -> Holder:
    found = _read(store)
    if found is not None and not _is_dead(found) and _changes(store, found, interval):
        raise _held(store, found)
    own = _own()
    _write(store, own)
    time.sleep(_SETTLE_SECONDS)
    now = _read(store)
    if now is not None and now.token != own.token:
        raise _held(store, now)
    return own


def _held(store: RunStore, holder: Holder) -> HeldError:
    return HeldError(
        f"{store.uri} is being written by another run ({holder}). Wait until it has ended, stop it, or choose another "
        "--output."
    )


def _changes(store: RunStore, found: Holder, interval: float) -> bool:
    """Whether a lease is alive: it is rewritten while one watches. One that goes away is not."""
    for _ in range(2 * _INTERVALS_WATCHED):
        time.sleep(interval / 2)
        now = _read(store)
        if now != found:
            return now is not None
    return False


def _keep(store: RunStore, own: Holder, interval: float, ended: threading.Event, stop: Stop) -> None:
    beat = 0
    while not ended.wait(interval):
        beat += 1
        try:
            _confirm(store, own)
            _write(store, replace(own, beat=beat))
        except StoppedError as error:
            stop(error)
            return
        except HeldError as error:  # by another version
            stop(StoppedError(str(error)))
            return
        except Exception:
            # A store that does not answer for a moment is no reason to end a run; the next heartbeat tells more. And
            # whatever it is: without a heart that beats another run would take the folder for free.
            continue


def _confirm(store: RunStore, own: Holder) -> None:
    found = _read(store)
    if found is None or found.token != own.token:
        who = found or "it has ended since"
        raise StoppedError(
            f"another run has taken over {store.uri} ({who}), because this one gave no sign of life for some time. "
            "This one has stopped; the other goes on from what is finished."
        )


def _release(store: RunStore, own: Holder) -> None:
    with suppress(OSError, HeldError):
        found = _read(store)
        if found is not None and found.token == own.token:
            store.filesystem.delete_file(store.path(LEASE))
            store.discard_if_empty()


def _read(store: RunStore) -> Holder | None:
    """Who holds the folder, or None if nobody does.

    Where a file cannot be renamed to its name it may be found half-written, which is a sign of life; what a dead holder
    left like that is read as nobody's after some looks.
    """
    for _ in range(_LOOKS):
        try:
            text = store.read_text(LEASE)
            value = None if text is None else json.loads(text)
        except FileNotFoundError:
            return None  # released between two looks
        except json.JSONDecodeError:
            time.sleep(_SETTLE_SECONDS)
            continue
        break
    else:
        return None
    try:
        return None if value is None else Holder(**value)
    except TypeError as error:
        raise HeldError(
            f"{store.path(LEASE)} was not written by this version of razor_ray ({error}). If no run is writing "
            f"{store.uri}, delete that file."
        ) from error


def _write(store: RunStore, holder: Holder) -> None:
    store.write_json(LEASE, asdict(holder))


def _own() -> Holder:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"user {os.getuid()}"  # a container without an entry for it
    now = datetime.now(UTC).isoformat(timespec="seconds")
    started = _started(os.getpid())
    return Holder(uuid.uuid4().hex, user, socket.gethostname(), os.getpid(), now, _machine(), started)


def _is_dead(holder: Holder) -> bool:
    """Whether the holder is known to be dead: a process of this very machine, and not there any more."""
    if holder.machine is None or holder.machine != _machine():
        return False
    return _started(holder.pid) != holder.started


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's count; None if it is not there or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, started = fields[0], fields[19]
    return None if state in "ZX" else started
