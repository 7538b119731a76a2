"""Freed memory of a CPU, returned to the system at once."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's malloc.h: the size from which an allocation is a separate mapping, which is returned when freed, and the
# largest such size, up to which glibc itself raises it.
_M_MMAP_THRESHOLD, _LARGEST = -3, 32 * 2**20


@contextmanager
def release_freed_memory() -> Iterator[None]:
    """Return freed blocks of a MiB or more to the system at once inside the context, where the C library is glibc.

    A parameter is whole for a moment before it is sharded, and after it is gathered. In a heap, those moments added up
    to more than half of the model (docs/scaling.md).
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
