"""What is noticed row by row and said once for a file, with the number of rows."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from lightning.fabric.utilities.rank_zero import rank_zero_only

from dpr_lightning.errors import counted

log = logging.getLogger(__name__)
_NAMED = 12
"""Columns that a sentence names."""


class Notices:
    """Counts of what is noticed in the rows of one file.

    Attributes:
        counts: rows, and the first of them, by sentence.
    """

    def __init__(self) -> None:
        self.counts: dict[str, tuple[int, str]] = {}
        self._decisions: dict[str, bool] = {}
        self._columns: Counter[str] = Counter()

    def add(self, sentence: str, row: str) -> None:
        """Count a row.

        Args:
            sentence: what is noticed, without a full stop.
            row: its ``file:number``.
        """
        count, first = self.counts.get(sentence, (0, row))
        self.counts[sentence] = (count + 1, first)

    def add_reading(self, shape: str, unused: Sequence[str], row: str) -> None:
        """Count how a row was read.

        Args:
            shape: its shape; empty for one that needs no mention.
            unused: its columns that are not used.
            row: its ``file:number``.
        """
        if shape:
            self.add(f"read as {shape}", row)
        for column in unused:
            self.add(f"the column {column!r} is not used", row)

    def add_columns(self, columns: Iterable[str]) -> None:
        """Count the columns of a row that nothing is learnt from, which verifiers may read."""
        self._columns.update(columns)

    def decide(self, key: str, decision: Callable[[], bool]) -> bool:
        """The decision on ``key``, taken at the first row that needs it and then remembered."""
        if key not in self._decisions:
            self._decisions[key] = decision()
        return self._decisions[key]

    def lines(self) -> list[str]:
        """One sentence each, with the count; one for all columns that nothing is learnt from."""
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
    """Say what was noticed in a file, on the first rank alone."""
    for line in lines:
        log.warning("%s: %s", source, line)
