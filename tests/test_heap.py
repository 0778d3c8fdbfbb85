"""Freed memory: kept while that is asked for, given back afterwards; by what the kernel counts of other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from razor_ray import heap

REPOSITORY = Path(__file__).parents[1]
glibc_only = pytest.mark.skipif(heap._glibc() is None, reason="only glibc can be told")

# Faults are of pages of 4 KiB, or of 2 MiB where the kernel gives such: enough of both to tell a few of others apart.
PRELUDE = """
import json, resource, threading
import numpy as np
from razor_ray.heap import freed_memory_kept, give_back_freed_memory, keep_freed_memory

MIB = 2**20

def of_numpy(num_bytes):
    return np.ones(num_bytes, np.uint8)

def of_torch(num_bytes):
    import torch
    return torch.ones(num_bytes, dtype=torch.uint8)

def faults(make, num_bytes, times=8):
    for _ in range(10):  # until the heap has its size: what is aligned leaves splinters at first
        make(num_bytes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        make(num_bytes)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
"""


def measured(script: str) -> dict[str, Any]:
    """What a script puts into `found`, run by a process of its own whose allocator nobody has told anything."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    ended = subprocess.run(
        [sys.executable, "-c", f"{PRELUDE}\nfound = {{}}\n{script}\nprint(json.dumps(found))"],
        env=environment | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@glibc_only
@pytest.mark.parametrize("make", ["of_numpy", "of_torch"])
def test_what_is_freed_is_not_asked_for_again(make):
    found = measured(f"""
found["plain"] = faults({make}, 64 * MIB)
found["is_kept"] = keep_freed_memory()
found["kept"] = faults({make}, 64 * MIB)
""")
    assert found["is_kept"] is True
    assert found["plain"] >= 8 * 32  # 64 MiB are 32 large pages, or 16,384 small ones
    assert found["kept"] < found["plain"] / 10


@glibc_only
def test_afterwards_all_is_given_back():
    found = measured("""
before = resident()
with freed_memory_kept():
    blocks = [of_numpy(32 * MIB) for _ in range(8)]
    end = of_numpy(MIB)  # above them: what lies below it cannot be given back by moving the heap's end
    del blocks
    found["inside"] = resident() - before
found["afterwards"] = resident() - before
""")
    assert found["inside"] > 240 * 2**20
    assert found["afterwards"] < 30 * 2**20


@glibc_only
@pytest.mark.parametrize("thread", ["main", "another"])
def test_what_is_kept_can_be_given_back_for_once(thread):
    found = measured(f"""
keep_freed_memory()

def work():
    before = resident()
    before_it, block, behind_it = of_numpy(20 * MIB), of_numpy(MIB), [of_numpy(20 * MIB) for _ in range(2)]
    del before_it, behind_it
    found["kept"] = resident() - before
    give_back_freed_memory()
    found["given_back"] = resident() - before
    found["faults"] = faults(of_numpy, 32 * MIB)

if {thread == "main"}:
    work()
else:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
""")
    assert found["kept"] > 55 * 2**20
    assert found["given_back"] < 10 * 2**20
    assert found["faults"] < 8 * 16 / 2, "what is freed now is kept again"  # 32 MiB are 16 large pages


@glibc_only
def test_a_function_may_have_it_also_one_that_fails():
    found = measured("""
@freed_memory_kept()
def work(fails):
    found["faults"] = faults(of_numpy, 64 * MIB)
    kept = resident()
    if fails:
        raise ZeroDivisionError("as it was raised")
    return kept

before = resident()
found["returned"] = work(False) - before
found["afterwards"] = resident() - before
try:
    work(True)
except ZeroDivisionError as error:
    found["raised"] = str(error)
found["afterwards_too"] = resident() - before
found["faults_afterwards"] = faults(of_numpy, 64 * MIB)
""")
    assert found["faults"] < 8 * 32 / 10  # of the second call: it can be called again
    assert found["returned"] > 60 * 2**20
    assert found["raised"] == "as it was raised"
    assert max(found["afterwards"], found["afterwards_too"]) < 30 * 2**20
    assert found["faults_afterwards"] >= 8 * 32


@glibc_only
def test_afterwards_blocks_of_some_size_are_used_again_as_by_itself():
    """glibc learns that a process frees blocks of a few MiB, but not in one that it was told anything."""
    for before in ("", "with freed_memory_kept(): pass"):
        found = measured(f"{before}\nfound['faults'] = faults(of_numpy, 3 * MIB, times=200)")
        assert found["faults"] < 3 * 768, before or "by itself"  # of small pages 768 each time else


@pytest.mark.parametrize("has", [{}, {"gnu_get_libc_version": print}], ids=["musl, macOS", "a stand-in for glibc"])
def test_without_glibc_nothing_is_done(monkeypatch, has):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: SimpleNamespace(**has))
    assert heap.keep_freed_memory() is False
    with heap.freed_memory_kept():
        ran = True
    assert ran
    heap.give_back_freed_memory()
    with pytest.raises(ZeroDivisionError), heap.freed_memory_kept():
        raise ZeroDivisionError
