"""Work that need not wait for other work: in a process of its own, where there is a core for it."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch

from dpr_lightning.cli.loading import console

Begin = Callable[..., Callable[[], Any]]
"""Begins ``function(*arguments, **options)``; what it returns waits for the end and gives what the function gave."""


@contextmanager
def run_in_background(log: Path, *, allowed: bool = True) -> Iterator[Begin]:
    """Where functions are called one after the other beside what the caller does; later, where no core is free.

    Args:
        log: file for what they print, in a process of their own.
        allowed: False: each is called when it is waited for, here.
    """
    if not (allowed and spare_cores() >= torch.get_num_threads()):
        yield partial
        return
    console.print(f"Beside it, in a process of its own: what can be done already ({log}).", style="dim")
    others = set(active_children())
    with ProcessPoolExecutor(1, get_context("spawn"), _print_into, (str(log),)) as pool:

        def begin(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], Any]:
            return pool.submit(function, *arguments, **options).result

        try:
            yield begin
        except BaseException:  # nobody waits for it any more
            for process in set(active_children()) - others:
                process.terminate()
            raise


def spare_cores() -> int:
    """Cores that this process may use and its threads do not."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable - torch.get_num_threads()


def _print_into(log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
