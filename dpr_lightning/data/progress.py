"""A progress bar for work that takes more than a moment."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(title: str, total: int, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal while the block runs, and nothing elsewhere; yields a function that advances it.

    Args:
        title: of the work.
        total: units of work; 0 when unknown.
        enabled: False for ranks that show nothing.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (enabled and sys.stderr.isatty())
    with Progress(*columns, transient=True, disable=hidden, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total or None)
        yield lambda count: bar.advance(task, count)
