"""Starts the ranks of a run as processes of their own, as torchrun does."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRELOADED = ["dpr_lightning.callbacks", "dpr_lightning.lightning_cli.dpr_cli", "tests.strategies.worker"]


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return int(connection.getsockname()[1])


class Rank:
    """A process of a run, with the methods of :class:`subprocess.Popen` that tests call."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        # A server that has imported everything is forked: a process starts in milliseconds and not in ten seconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._process = context.Process(target=_run_module, args=(list(command), dict(environment), log))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative where a signal ended the process.

        Raises:
            subprocess.TimeoutExpired: it still runs after ``timeout`` seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("rank", timeout or 0.0)
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code; None while the process runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()


def _run_module(command: list[str], environment: dict[str, str], log: Path) -> None:
    """What ``python -m COMMAND`` does, with its output in ``log``."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def start_ranks(
    command: Sequence[str], ranks: int, logs: Path, environment: Mapping[str, str] | None = None
) -> list[Rank]:
    """Start ``python -m COMMAND`` once for each rank; their output goes to ``logs``."""
    logs.mkdir(parents=True, exist_ok=True)
    shared = _environment(environment)
    if ranks > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        shared |= {"LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "tests"}
    return [
        Rank(
            command,
            shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}),
            logs / f"rank_{rank}.log",
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
