"""Memory that a process asks for again and again: kept, rather than given back to the kernel each time.

The C library maps every large block anew and unmaps it when it is freed. A network's activations are such blocks, freed
in every step, so each step pays a page fault for every 4 KiB of them: a third of the time of ResNet-18 at 224 pixels on
a virtual machine's CPU (docs/performance.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_MMAP_MAX_BY_DEFAULT = 65_536
_TRIM_THRESHOLD_BY_DEFAULT = 128 * 1024


def keep_freed_memory() -> bool:
    """Have this process use again what it frees, for as long as it lives; its size stays that of its peak.

    For processes whose steps are all alike. Returns whether the C library has such a setting: glibc has, others are
    left as they are.
    """
    library = _glibc()
    return library is not None and bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1))


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """`keep_freed_memory` for a while, in a process that then does something else; afterwards all is given back."""
    keep_freed_memory()
    try:
        yield
    finally:
        if library := _glibc():
            library.mallopt(_M_MMAP_MAX, _MMAP_MAX_BY_DEFAULT)
            library.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BY_DEFAULT)
            library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
