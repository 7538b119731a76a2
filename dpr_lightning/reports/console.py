"""The console and the progress bar of all commands."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# A pipe or a log file has no width, and tables need one.
console = Console() if sys.stdout.isatty() else Console(width=120)


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Any]:
    """Show a progress bar, and yield a function that is called with the number of items done since the last call."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.update(task, advance=count)
