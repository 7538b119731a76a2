"""Memory of tensors on a CPU: whether freed memory is retained or returned to the system, and huge pages.

Scoring on a CPU takes 0.81 to 0.90 of the time that it takes without this (docs/performance.md).
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Options of glibc's malloc.h: free memory left at the end of the heap; size from which an allocation is a separate
# mapping, and the largest that it sets by itself; number of mappings, and its default.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGEST_THRESHOLD, _MAPPINGS = 32 * 2**20, 65536
# Linux: the advice for huge pages, and the size at which they are used here.
_MADV_HUGEPAGE, _HUGE = 14, 2 * 2**20
_HUGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_OVERCOMMIT, _STRICT = Path("/proc/sys/vm/overcommit_memory"), "2"
_retaining = False


def retain_freed_memory() -> None:
    """Retain freed memory in this process from now on, where the C library is glibc; elsewhere do nothing.

    A step of training frees its activations and allocates them again a moment later. Memory that was returned to the
    system in between comes back as pages that it fills with zeros: a twentieth of a step's time (docs/performance.md).
    The process does not shrink any more. Later allocations use huge pages where Linux has them on request.
    """
    global _retaining
    set_option = _mallopt()
    if set_option is not None and not _retaining:
        set_option(_M_TRIM_THRESHOLD, -1)  # never return memory
        set_option(_M_MMAP_MAX, 0)
        _ask_for_huge_pages()
        _retaining = True


@contextmanager
def release_freed_memory() -> Iterator[None]:
    """Return freed memory to the system at once inside the context, where the C library is glibc.

    A parameter is whole for a moment before it is sharded, and after it is gathered. Retained, those moments added up
    to more than half of the model (docs/scaling.md).
    """
    set_option = _mallopt()
    if set_option is not None:
        set_option(_M_MMAP_MAX, _MAPPINGS)
        set_option(_M_MMAP_THRESHOLD, 2**20)
        if _retaining:
            ctypes.CDLL(None).malloc_trim(0)  # else everything is allocated from the heap's retained end
    try:
        yield
    finally:
        if set_option is not None:
            set_option(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
            if _retaining:
                set_option(_M_MMAP_MAX, 0)
                _ask_for_huge_pages()


def _ask_for_huge_pages() -> None:
    """Extend the heap by half of the machine's memory, and advise Linux to use huge pages for that part.

    The heap grows at its end, and the advice does not hold for what is added later.
    """
    if _read(_HUGE_SIZE) != str(_HUGE) or _read(_OVERCOMMIT) in ("", _STRICT):
        return
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    count = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    address = library.malloc(count)
    if address:  # unless the process may not be so large
        first = -(-address // _HUGE) * _HUGE
        library.madvise(first, (address + count - first) // _HUGE * _HUGE, _MADV_HUGEPAGE)
        library.free(address)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _mallopt() -> Callable[[int, int], int] | None:
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None)
    return library.mallopt if hasattr(library, "mallopt") else None
