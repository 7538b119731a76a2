"""Runs `dpr` in a fork of this process for each rank, which is the start of a process without its imports."""

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpr_lightning.cli.main import main
from tests.strategies.launch import free_port

SECONDS = 300


class Failure(Exception):
    """A command did not end as expected."""


def dpr(arguments: Sequence[str], log: Path, *, ranks: int = 1, codes: Sequence[int] = (0,)) -> int:
    """Run one command; its output goes to a file a rank that begins with the name ``log``.

    Args:
        codes: exit codes that are expected.

    Returns:
        The exit code.

    Raises:
        Failure: it ended with another code, or a rank took longer than :data:`SECONDS`.
    """
    environment = {}
    if ranks > 1:
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        environment |= {"LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "gates"}
    logs = [log.with_name(f"{log.name}.{rank}.log") for rank in range(ranks)]
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(
            target=_rank,
            args=(arguments, file, environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {})),
        )
        for rank, file in enumerate(logs)
    ]
    for process in processes:
        process.start()
    for process, file in zip(processes, logs, strict=True):
        process.join(SECONDS)
        if process.exitcode not in codes:
            for other in processes:
                other.kill()
            raise Failure(f"`dpr {' '.join(arguments)}` ended with {process.exitcode}:\n{file.read_text()[-3000:]}")
    return processes[0].exitcode or 0


def _rank(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= environment
    sys.exit(main(arguments))
