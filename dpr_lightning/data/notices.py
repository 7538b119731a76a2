"""Warnings that are counted row by row and logged once for a file, with the number of rows."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only

from dpr_lightning.errors import counted

log = logging.getLogger(__name__)
_NAMED = 12
"""Columns that a sentence names."""
_logged: set[tuple[str, str]] = set()
"""Absolute path of a file, and a warning about it that was logged."""


class Notices:
    """Counts the warnings about the rows of one file.

    Attributes:
        counts: number of rows, and the first of them, of each sentence.
    """

    def __init__(self) -> None:
        self.counts: dict[str, tuple[int, str]] = {}
        self._decisions: dict[str, bool] = {}
        self._columns: Counter[str] = Counter()

    def add(self, sentence: str, row: str) -> None:
        """Count a row.

        Args:
            sentence: the warning, without a full stop.
            row: its ``file:number``.
        """
        count, first = self.counts.get(sentence, (0, row))
        self.counts[sentence] = (count + 1, first)

    def add_shape(self, shape: str, unused: Sequence[str], row: str) -> None:
        """Count the shape of a row, and its columns that are not used.

        Args:
            shape: such as ``ShareGPT (conversations)``; empty for the package's own columns, which need no mention.
            unused: its columns that look as if they mattered for training and are not used.
            row: its ``file:number``.
        """
        if shape:
            self.add(f"read as {shape}", row)
        for column in unused:
            self.add(f"the column {column!r} is not used", row)

    def add_columns(self, columns: Iterable[str]) -> None:
        """Count the columns of a row that are not trained on, which verifiers may read."""
        self._columns.update(columns)

    def decide(self, key: str, decision: Callable[[], bool]) -> bool:
        """The decision on ``key``: computed for the first row that needs it, then the same for all rows."""
        if key not in self._decisions:
            self._decisions[key] = decision()
        return self._decisions[key]

    def lines(self) -> list[str]:
        """The warnings with their counts, and one sentence about all columns that only verifiers read."""
        lines = [
            f"{sentence} ({counted(count, 'row')}, first {first})." for sentence, (count, first) in self.counts.items()
        ]
        if self._columns:
            named = ", ".join(
                f"{column!r} ({counted(count, 'row')})" for column, count in self._columns.most_common(_NAMED)
            )
            more = f" and {len(self._columns) - _NAMED:,} more" if len(self._columns) > _NAMED else ""
            lines.append(f"only verifiers read the columns {named}{more}.")
        return lines


@rank_zero_only
def log_lines(source: str, lines: Sequence[str]) -> None:
    """Log warnings about a file, each once a process, on the first rank alone: a command may read a file again."""
    for line in lines:
        key = (str(Path(source).absolute()), line)
        if key not in _logged:
            _logged.add(key)
            log.warning("%s: %s", source, line)
