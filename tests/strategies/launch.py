"""Starts the ranks of a run as processes of their own, as torchrun does."""

import os
import runpy
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.fork_server import ForkedProcess, server

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return int(connection.getsockname()[1])


def run_module(command: Sequence[str]) -> None:
    """What ``python -m COMMAND`` does."""
    sys.argv = list(command)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def start_ranks(
    command: Sequence[str], ranks: int, logs: Path, environment: Mapping[str, str] | None = None
) -> list[ForkedProcess]:
    """Start ``python -m COMMAND`` once for each rank; their output goes to ``logs``."""
    logs.mkdir(parents=True, exist_ok=True)
    shared = _environment(environment)
    if ranks > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        shared |= {"LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "tests"}
    return [
        server().start(
            run_module,
            command,
            environment=shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}),
            folder=ROOT,
            log=logs / f"rank_{rank}.log",
        )
        for rank in range(ranks)
    ]


def _environment(added: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, **(added or {}), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


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
