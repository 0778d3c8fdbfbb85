"""One writer to a folder: who is refused, who takes over, and that of two newcomers one yields."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import fsspec
import pyarrow.fs as pafs
import pytest

from razor_ray import lease
from razor_ray.interrupt import StoppedError, interruptible
from razor_ray.lease import HeldError, hold
from razor_ray.run_store import RunStore

INTERVAL = 0.15
"""A takeover comes after four."""
LONGER_INTERVAL = 0.5
"""Where a holder must be seen to live, on a disk that may take a second to flush."""


@pytest.fixture(params=["disk", "object store"])
def store(request, tmp_path):
    found = RunStore(str(tmp_path / "run"))
    if request.param == "object store":
        found.filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("memory")))
        found.root = f"lease-{tmp_path.name}-{id(request)}/run"
    return found


def elsewhere(**changes) -> lease.Holder:
    """A holder on another machine."""
    return replace(lease._own(), token="other", user="ada", host="node7", machine="other", **changes)


def never(error: Exception) -> None:
    raise AssertionError(error)


def test_it_is_released_and_leaves_nothing_behind(store):
    with hold(store, never, interval=INTERVAL):
        assert lease._read(store) is not None
        store.confirm()
    assert lease._read(store) is None
    assert store.filesystem.get_file_info(store.root).type == pafs.FileType.NotFound
    store.write_json("config.json", {})
    with pytest.raises(ZeroDivisionError), hold(store, never, interval=INTERVAL):
        raise ZeroDivisionError
    assert store._list(store.root) == ["config.json"]


def test_the_second_is_refused_with_who_holds_it(store):
    with hold(store, never, interval=LONGER_INTERVAL):
        with pytest.raises(HeldError) as raised, hold(store, never, interval=LONGER_INTERVAL):
            pass
        own = lease._read(store)
        assert own is not None
        assert f"being written by another run ({own.user} on {own.host}, process {own.pid}, since 2" in str(
            raised.value
        )
    with hold(store, never, interval=LONGER_INTERVAL):
        pass


def test_a_heartbeat_that_stopped_is_watched_and_then_taken_over(store):
    lease._write(store, elsewhere())
    started = time.monotonic()
    with hold(store, never, interval=INTERVAL):
        assert time.monotonic() - started >= 4 * INTERVAL
        now = lease._read(store)
        assert now is not None and now.token != "other"


def test_a_dead_process_of_this_machine_is_not_waited_for(store):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = lease._own()
    for dead in (replace(own, pid=ended.pid), replace(own, started="1")):  # gone; or another has its number by now
        lease._write(store, replace(dead, token="dead"))
        started = time.monotonic()
        with hold(store, never, interval=100):
            assert time.monotonic() - started < 5


def test_a_killed_process_that_nobody_has_waited_for_is_dead():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    holder = replace(lease._own(), pid=child.pid, started=lease._started(child.pid))
    assert not lease._is_dead(holder)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert lease._is_dead(holder)
    child.wait()


def test_a_holder_that_was_taken_over_stops_its_run(store):
    taken_over = pytest.raises(StoppedError, match=r"another run has taken over .* \(ada on node7, process")
    with taken_over, interruptible() as stop, hold(store, stop, interval=INTERVAL):
        lease._write(store, elsewhere())
        with pytest.raises(StoppedError):
            store.commit("scores", {})  # a commit looks for itself, and does not wait for the heartbeat
        time.sleep(30)
    now = lease._read(store)
    assert now is not None and now.token == "other"  # not released: it is the other's


def test_a_holder_that_was_taken_over_and_left_stops_its_run(store):
    """The other has finished and released while this one was suspended: no lease is no leave to write."""
    taken_over = pytest.raises(StoppedError, match=r"another run has taken over .* \(it has ended since\)")
    with taken_over, interruptible() as stop, hold(store, stop, interval=INTERVAL):
        store.write_json("config.json", {})
        store.filesystem.delete_file(store.path(lease.LEASE))
        time.sleep(30)
    assert lease._read(store) is None  # not written anew
    with hold(store, never, interval=100):
        store.filesystem.delete_file(store.path(lease.LEASE))
        with pytest.raises(StoppedError):
            store.seal("proxy", {})
    assert not store.is_done("proxy")


def test_a_lease_that_is_found_half_written_is_alive(store):
    """As a reader may find it where a file has no other name while it is written."""
    lease._write(store, elsewhere())

    refused = threading.Event()

    def write() -> None:
        beat = 0
        while not refused.is_set():
            beat += 1
            with store.filesystem.open_output_stream(store.path(lease.LEASE)) as stream:
                stream.write(b'{"token": ')
            time.sleep(LONGER_INTERVAL / 2)
            lease._write(store, elsewhere(beat=beat))
            time.sleep(LONGER_INTERVAL)

    holder = threading.Thread(target=write)
    holder.start()
    try:
        with pytest.raises(HeldError, match="ada on node7"), hold(store, never, interval=LONGER_INTERVAL):
            pass
    finally:
        refused.set()
        holder.join()


def test_a_lease_that_stays_half_written_holds_nothing_up(store):
    store.write_bytes(lease.LEASE, b'{"token": ')
    with hold(store, never, interval=INTERVAL):
        now = lease._read(store)
        assert now is not None and now.token != "other"


@pytest.mark.parametrize("seed", range(3))
def test_of_newcomers_at_once_one_stays(store, seed):
    lease._write(store, elsewhere())  # dead: all of them watch it, and take over at about the same time
    running, ended = [], []

    def newcomer(number: int) -> None:
        lost = threading.Event()
        time.sleep(number * seed * 0.01)
        try:
            with hold(store, lambda error: lost.set(), interval=INTERVAL):
                if not lost.wait(6 * INTERVAL):
                    running.append(number)
                    time.sleep(6 * INTERVAL)
        except HeldError:
            pass
        ended.append(number)

    threads = [threading.Thread(target=newcomer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 4
    assert len(running) == 1


@pytest.mark.parametrize("error", [OSError("no answer"), RuntimeError("of a store that has errors of its own")])
def test_a_store_that_does_not_answer_for_a_moment_ends_no_run(store, monkeypatch, error):
    write = lease._write
    with hold(store, never, interval=INTERVAL):
        monkeypatch.setattr(lease, "_write", lambda *_: (_ for _ in ()).throw(error))
        time.sleep(3 * INTERVAL)
        monkeypatch.setattr(lease, "_write", write)
        before = lease._read(store)
        end = time.monotonic() + 20
        while lease._read(store) == before and time.monotonic() < end:
            time.sleep(INTERVAL)
        assert lease._read(store) != before


def test_a_holder_that_another_version_has_taken_over_stops_its_run(store):
    taken_over = pytest.raises(StoppedError, match="not written by this version")
    with taken_over, interruptible() as stop, hold(store, stop, interval=INTERVAL):
        store.write_json(lease.LEASE, asdict(elsewhere()) | {"colour": "blue"})
        time.sleep(30)


def test_a_lease_of_another_version_is_told(store):
    store.write_json(lease.LEASE, asdict(elsewhere()) | {"colour": "blue"})
    with pytest.raises(HeldError, match=r"not written by this version .*delete that file"), hold(store, never):
        pass
    assert json.loads(json.dumps(store.read_json(lease.LEASE)))["colour"] == "blue"
