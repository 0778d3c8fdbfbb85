"""Faults for tests: loaded by every Python process that has this folder on its path, the workers of Ray included.

The environment variable FAULTS is JSON: `log`, a file that gets a line for every step of a write to a run's folder, by
whichever process; `when`, the end of the line at which something happens, at its `nth` time (without it the first);
`fault`, what happens: `kill`, the process that writes it is killed with signal 9; `kill driver`, the one that wrote
the first line is, whoever writes this; `full`, from there on the disk is
full; or `error`, from there on the store fails with each write; `slow`, seconds that every file of scores takes. That a
process was killed is told by a file, `log` and `.killed`.
"""

import errno
import importlib.util
import json
import os
import signal
import sys
import time
from contextlib import contextmanager

FAULTS = json.loads(os.environ.get("FAULTS", "{}"))
FAILURES = {"full": errno.ENOSPC, "error": errno.EIO}
TIMED = ("_lease.json", "_beat.json", "_preflight")  # written by the clock or before anything: no points to count


def step(what: str, path: str) -> None:
    """A moment at which a run may die."""
    if any(name in path for name in TIMED):
        return
    log = os.open(FAULTS["log"], os.O_RDWR | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{os.getpid()} {what} {path}\n".encode())
    lines = os.pread(log, 2**24, 0).decode().splitlines()
    os.close(log)
    if "when" not in FAULTS or sum(line.endswith(FAULTS["when"]) for line in lines) < FAULTS.get("nth", 1):
        return
    if FAULTS["fault"] in FAILURES:
        number = FAILURES[FAULTS["fault"]]
        raise OSError(number, os.strerror(number), path)
    if f"{what} {path}".endswith(FAULTS["when"]):  # not another process that writes at the same time
        try:
            os.close(os.open(FAULTS["log"] + ".killed", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return  # once is enough
        driver = int(lines[0].split(" ", 1)[0])
        os.kill(driver if FAULTS["fault"] == "kill driver" else os.getpid(), signal.SIGKILL)


def break_run_store(module) -> None:
    aside, commit = module.aside, module.RunStore.commit

    @contextmanager
    def faulty_aside(filesystem, path):
        step("open", path)
        if "scores/part-" in path:
            time.sleep(FAULTS.get("slow", 0))
        with aside(filesystem, path) as target:
            yield target
            step("close", path)
        step("done", path)

    def faulty_commit(self, stage, *arguments):
        step("commit", self.path(stage))
        commit(self, stage, *arguments)
        step("committed", self.path(stage))

    module.aside, module.RunStore.commit = faulty_aside, faulty_commit


def break_subset(module) -> None:
    write = module._write_shard

    def faulty_write(catalog, filesystem, path, *arguments):
        step("open", path)
        write(catalog, filesystem, path, *arguments)
        step("done", path)

    module._write_shard = faulty_write


def yield_the_port(module) -> None:
    """Not the port that every Ray of a machine wants for its agent: the tests' own Ray takes jobs by it."""
    module.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT = 0


BREAK = {
    "razor_ray.run_store": break_run_store,
    "razor_ray.stages.subset": break_subset,
    "ray._private.ray_constants": yield_the_port,
}


class Breaker:
    """Finds the modules to break, and breaks them when they have been loaded."""

    def find_spec(self, name, path=None, target=None):
        if name not in BREAK:
            return None
        breaking = BREAK.pop(name)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_break(module):
            load(module)
            breaking(module)

        spec.loader.exec_module = load_and_break
        return spec


if FAULTS:
    sys.meta_path.insert(0, Breaker())
