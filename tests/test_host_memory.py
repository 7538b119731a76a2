"""Freed memory is returned to the system, measured by page faults in a separate process."""

import ctypes
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc"
)
SIZE, TIMES = 16 * 2**20, 10
PROGRAM = f"""
import resource
from contextlib import nullcontext
import torch
from dpr_lightning.engine.host_memory import release_freed_memory

torch.ones(3 * {SIZE} // 2, dtype=torch.int8)  # glibc serves smaller blocks from its heap from now on
with CONTEXT():
    torch.ones({SIZE}, dtype=torch.int8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({TIMES}):
        torch.ones({SIZE}, dtype=torch.int8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(context: str) -> int:
    """Page faults of allocating and freeing a block several times."""
    command = [sys.executable, "-c", PROGRAM.replace("CONTEXT", context)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"MALLOC_ARENA_MAX": "1"}
    )
    return int(result.stdout)


def test_each_block_is_new_to_the_process() -> None:
    assert 2 * faults("nullcontext") < faults("release_freed_memory")
