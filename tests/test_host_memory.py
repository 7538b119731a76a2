"""Freed memory is retained or returned to the system, measured by page faults in a separate process."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library cannot be told"
)
SIZE, TIMES, PAGE = 64 * 2**20, 10, 4096
PROGRAM = f"""
import resource
import torch
from dpr_lightning.engine.host_memory import retain_freed_memory, release_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work(size={SIZE}):
    before = faults()
    for _ in range({TIMES}):
        torch.ones(size, dtype=torch.int8)
    return faults() - before

work()
given_back = work()
retain_freed_memory()
work()
retained = work()
with release_freed_memory():
    within = work(4 * {SIZE})  # larger than the retained memory
work(2 * {SIZE})
afterwards = work(2 * {SIZE})
print(given_back, retained, within, afterwards)
"""


@pytest.mark.slow
def test_pages_are_asked_for_once_or_every_time() -> None:
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"MALLOC_ARENA_MAX": "1"}
    )
    given_back, saved, within, afterwards = map(int, result.stdout.split())
    pages = SIZE // PAGE
    # Of huge pages there are fewer; then nothing is to be seen here.
    if given_back < pages * TIMES // 2:
        pytest.skip(f"{given_back} pages were asked for without being told: this system hands out larger ones")
    assert saved < pages
    assert within > 4 * pages * TIMES // 2
    assert afterwards < 2 * pages


HUGE = """
import resource
import torch
from dpr_lightning.engine import host_memory
from pathlib import Path

{before}

def huge():
    sizes = [line.split()[1] for line in Path("/proc/self/smaps").read_text().splitlines() if "AnonHugePages" in line]
    return sum(map(int, sizes)) * 1024

host_memory.retain_freed_memory()
before = huge()
values = torch.ones({size}, dtype=torch.int8)
print(huge() - before)
"""


def huge_bytes(before: str = "") -> int:
    """Bytes of a new tensor in huge pages."""
    program = HUGE.format(before=before, size=SIZE)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="nothing tells of what pages memory is")
def test_what_is_kept_lies_in_huge_pages() -> None:
    limited = "resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))"
    strict = "host_memory._OVERCOMMIT = Path('strict')"
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[madvise]" not in enabled.read_text():
        pytest.skip("this system has huge pages for all processes, or for none")
    assert huge_bytes() > SIZE * 3 // 4
    assert huge_bytes(limited) == huge_bytes(strict) == 0
