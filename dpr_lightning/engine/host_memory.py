"""The memory that tensors on a CPU lie in: kept when they need it no longer, or given back at once; its pages large."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Of glibc's malloc.h: how much is kept free at the end of the heap; from which size on an allocation is a mapping of
# its own, and the most it would choose by itself; how many mappings there may be, and as many as there are by default.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGEST_THRESHOLD, _MAPPINGS = 32 * 2**20, 65536
# Of Linux: what asks for huge pages, and their size where they are no larger than a small tensor.
_MADV_HUGEPAGE, _HUGE = 14, 2 * 2**20
_HUGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_OVERCOMMIT, _STRICT = Path("/proc/sys/vm/overcommit_memory"), "2"
_kept = False


def retain_freed_memory() -> None:
    """From now on this process keeps what tensors free, where the C library is glibc; elsewhere nothing changes.

    A step of training frees what its forward pass kept, and asks for it again a moment later. Given back in between,
    it comes as pages that the system fills with zeros one by one: a twentieth of a step's time (docs/performance.md).
    The process stays as large as it ever was. What is asked for from then on lies in huge pages, where Linux has them
    for those who ask.
    """
    global _kept
    tell = _mallopt()
    if tell is not None and not _kept:
        tell(_M_TRIM_THRESHOLD, -1)  # never
        tell(_M_MMAP_MAX, 0)
        _ask_for_huge_pages()
        _kept = True


@contextmanager
def release_freed_memory() -> Iterator[None]:
    """Within, what is freed goes back to the system at once, where the C library can be told to.

    A parameter is whole for a moment before it is cut up, or once it is put together. Kept by the allocator, those
    moments added up to more than half of the model (docs/scaling.md).
    """
    tell = _mallopt()
    if tell is not None:
        tell(_M_MMAP_MAX, _MAPPINGS)
        tell(_M_MMAP_THRESHOLD, 2**20)
        if _kept:
            ctypes.CDLL(None).malloc_trim(0)  # else there is room for everything at the end of the heap
    try:
        yield
    finally:
        if tell is not None:
            tell(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
            if _kept:
                tell(_M_MMAP_MAX, 0)
                _ask_for_huge_pages()


def _ask_for_huge_pages() -> None:
    """Let the heap end half of the machine's memory later, and say that this part, still empty, is to be of huge pages.

    The heap grows by moving its end, and what is said of it does not hold for what is added later.
    """
    if _read(_HUGE_SIZE) != str(_HUGE) or _read(_OVERCOMMIT) in ("", _STRICT):
        return
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    place = library.malloc(size)
    if place:  # not where the process may not be so large
        first = -(-place // _HUGE) * _HUGE
        library.madvise(first, (place + size - first) // _HUGE * _HUGE, _MADV_HUGEPAGE)
        library.free(place)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _mallopt() -> Callable[[int, int], int] | None:
    return getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
