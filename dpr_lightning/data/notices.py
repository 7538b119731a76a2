"""What is noticed row by row and said once for a file, with the number of rows."""

import logging
from collections.abc import Callable, Sequence

from lightning.fabric.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)


class Notices:
    """Counts of what is noticed in the rows of one file.

    Attributes:
        counts: rows, and the first of them, by sentence.
    """

    def __init__(self) -> None:
        self.counts: dict[str, tuple[int, str]] = {}
        self._decisions: dict[str, bool] = {}

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

    def decide(self, key: str, decision: Callable[[], bool]) -> bool:
        """The decision on ``key``, taken at the first row that needs it and then remembered."""
        if key not in self._decisions:
            self._decisions[key] = decision()
        return self._decisions[key]

    def lines(self) -> list[str]:
        """One sentence each, with the count."""
        return [
            f"{sentence} ({count:,} {'row' if count == 1 else 'rows'}, first {first})."
            for sentence, (count, first) in self.counts.items()
        ]


@rank_zero_only
def log_lines(source: str, lines: Sequence[str]) -> None:
    """Say what was noticed in a file, on the first rank alone."""
    for line in lines:
        log.warning("%s: %s", source, line)
