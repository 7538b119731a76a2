"""What is freed is kept, or given back, as a process of its own shows by the pages that it is given and holds."""

import ctypes
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library cannot be told"
)
SIZE, TIMES, PAGE = 64 * 2**20, 10, 4096
PROGRAM = f"""
import resource
import torch
from dpr_lightning.host_memory import keep_freed_memory, memory_given_back

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work(size={SIZE}):
    before = faults()
    for _ in range({TIMES}):
        torch.ones(size, dtype=torch.int8)
    return faults() - before

work()
given_back = work()
keep_freed_memory()
work()
kept = work()
with memory_given_back():
    within = work(4 * {SIZE})  # for which there is no room among what is kept
work(2 * {SIZE})
afterwards = work(2 * {SIZE})
print(given_back, kept, within, afterwards)
"""


def test_pages_are_asked_for_once_or_every_time() -> None:
    command = [sys.executable, "-c", PROGRAM]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"MALLOC_ARENA_MAX": "1"}
    )
    given_back, kept, within, afterwards = map(int, found.stdout.split())
    pages = SIZE // PAGE
    # Of huge pages there are fewer; then nothing is to be seen here.
    if given_back < pages * TIMES // 2:
        pytest.skip(f"{given_back} pages were asked for without being told: this system hands out larger ones")
    assert kept < pages
    assert within > 4 * pages * TIMES // 2
    assert afterwards < 2 * pages
