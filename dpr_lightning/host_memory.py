"""What becomes of memory that tensors on a CPU no longer need: kept for the next ones, or given back at once."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Of glibc's malloc.h: how much is kept free at the end of the heap; from which size on an allocation is a mapping of
# its own, and the most it would choose by itself; how many mappings there may be, and as many as there are by default.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGEST_THRESHOLD, _MAPPINGS = 32 * 2**20, 65536
_kept = False


def keep_freed_memory() -> None:
    """From now on this process keeps what tensors free, where the C library is glibc; elsewhere nothing changes.

    A step of training frees what its forward pass kept, and asks for it again a moment later. Given back in between,
    it comes as pages that the system fills with zeros one by one: a twentieth of a step's time (docs/performance.md).
    The process stays as large as it ever was.
    """
    global _kept
    tell = _mallopt()
    if tell is not None and not _kept:
        tell(_M_TRIM_THRESHOLD, -1)  # never
        tell(_M_MMAP_MAX, 0)
        _kept = True


@contextmanager
def memory_given_back() -> Iterator[None]:
    """Within, what is freed goes back to the system at once, where the C library can be told to.

    A parameter is whole for a moment before it is cut up, or once it is put together. Kept by the allocator, those
    moments added up to more than half of the model (docs/scaling.md).
    """
    tell = _mallopt()
    if tell is not None:
        tell(_M_MMAP_MAX, _MAPPINGS)
        tell(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        if tell is not None:
            tell(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
            if _kept:
                tell(_M_MMAP_MAX, 0)


def _mallopt() -> Callable[[int, int], int] | None:
    return getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
