"""Starts the ranks of a run as processes of their own, as torchrun does."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def start_ranks(
    command: Sequence[str], ranks: int, logs: Path, environment: Mapping[str, str] | None = None
) -> list["subprocess.Popen[bytes]"]:
    """Start ``python -m COMMAND`` once for each rank; what they say goes to ``logs``."""
    logs.mkdir(parents=True, exist_ok=True)
    shared = {**os.environ, **(environment or {}), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    if ranks > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        shared |= {"LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "tests"}
    processes = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        with (logs / f"rank_{rank}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", *command], env=shared | own, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
                )
            )
    return processes


def run_ranks(
    command: Sequence[str],
    ranks: int,
    logs: Path,
    environment: Mapping[str, str] | None = None,
    *,
    timeout: float = 300,
) -> None:
    """Start the ranks and wait for all of them.

    Raises:
        AssertionError: one failed or took longer than ``timeout`` seconds; shows the end of its log.
    """
    processes = start_ranks(command, ranks, logs, environment)
    try:
        for rank, process in enumerate(processes):
            code = process.wait(timeout)
            log = (logs / f"rank_{rank}.log").read_text(errors="replace")
            assert code == 0, f"rank {rank} of {command} ended with {code}:\n{log[-4000:]}"
    finally:
        for process in processes:
            process.kill()
            process.wait()
