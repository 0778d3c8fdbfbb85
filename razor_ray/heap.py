"""Memory that a process asks for again and again: kept, rather than given back to the kernel each time.

The C library maps every large block anew and unmaps it when it is freed. A network's activations are such blocks, freed
in every step, so each step pays a page fault for every 4 KiB of them: a third of the time of ResNet-18 at 224 pixels on
a virtual machine's CPU (docs/performance.md).

What is kept is the heap of the main thread. Other threads have heaps of at most 64 MiB each, and larger blocks of
theirs are mapped anew all the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_AS_BEFORE = (
    (_M_MMAP_MAX, 65_536),
    # glibc raises both by itself, up to these, when large blocks are freed; but no more in a process that was told
    # anything. Left at where they begin, 128 KiB, every image of some size would be mapped anew from now on.
    (_M_MMAP_THRESHOLD, 32 * 2**20),
    (_M_TRIM_THRESHOLD, 64 * 2**20),
)

_is_kept = False


def keep_freed_memory() -> bool:
    """Have this process use again what it frees, for as long as it lives; it stays about as large as it was at most.

    For processes whose steps are all alike; after one that is not, `give_back_freed_memory`. Returns whether the C
    library has such a setting: glibc has, others are left as they are.
    """
    global _is_kept
    library = _glibc()
    _is_kept = library is not None and bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1))
    return _is_kept


def give_back_freed_memory() -> None:
    """Give what is free now back to the kernel, for once: after something that is far larger than a usual step."""
    if library := _glibc():
        library.malloc_trim(0)
        if _is_kept:
            # That leaves the end of a thread's own heap, up to 64 MiB, which goes when a block is freed in that thread.
            library.mallopt(_M_TRIM_THRESHOLD, 0)
            bytearray(2**18)
            library.mallopt(_M_TRIM_THRESHOLD, -1)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """`keep_freed_memory` for a while, in a process that then does something else; afterwards all is given back."""
    global _is_kept
    keep_freed_memory()
    try:
        yield
    finally:
        _is_kept = False
        if library := _glibc():
            for setting, value in _AS_BEFORE:
                library.mallopt(setting, value)
        give_back_freed_memory()


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    # By what is called, too: a stand-in for glibc has its version, but not its allocator.
    names = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return library if all(hasattr(library, name) for name in names) else None
