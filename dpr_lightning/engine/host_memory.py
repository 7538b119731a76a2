"""Freed memory of a CPU, returned to the system at once."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Of glibc's malloc.h: the size from which an allocation is a separate mapping, which is returned when freed, and the
# largest such size, up to which glibc itself raises it.
_M_MMAP_THRESHOLD, _LARGEST = -3, 32 * 2**20


@cache
def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


@contextmanager
def release_freed_memory() -> Iterator[None]:
    """Return freed blocks of a MiB or more to the system at once inside the context, where the C library is glibc.

    A parameter is whole for a moment before it is sharded, and after it is gathered. In a heap, those moments added up
    to more than half of the model (docs/scaling.md).
    """
    if not _is_glibc():
        yield
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
