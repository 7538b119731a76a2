"""How many mistakes are at the top of a list of rows, where it is known which rows are mistakes."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

FIRST = (10, 25, 50, 100)


@dataclass(frozen=True)
class ListPrecision:
    """What a ranked list has of known mistakes.

    Attributes:
        rows: of the list.
        mistakes: known among them.
        ranks: of the mistakes in the list, from 1, ascending.
        average_precision: mean over the mistakes of the precision down to each; a random order has about the share of
            the mistakes.
    """

    rows: int
    mistakes: int
    ranks: tuple[int, ...]
    average_precision: float

    def hits(self, first: int) -> int:
        """Mistakes among the first rows."""
        return int(np.searchsorted(self.ranks, first, side="right"))

    @property
    def firsts(self) -> tuple[int, ...]:
        """Lengths of the top of the list that are reported."""
        return tuple(first for first in FIRST if first < self.rows) or (self.rows,)

    def recall(self, first: int) -> float:
        """Share of the mistakes that is among the first rows."""
        return self.hits(first) / self.mistakes

    def recall_interval(self, first: int) -> tuple[float, float]:
        """Wilson's 95% interval of :meth:`recall`, wide where there are few mistakes."""
        interval = binomtest(self.hits(first), self.mistakes).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)

    def rows_with(self, share: float) -> int:
        """The length of the top of the list that has a share of the mistakes."""
        return self.ranks[max(1, math.ceil(share * self.mistakes)) - 1]

    def curve(self) -> list[tuple[float, float]]:
        """Recall and precision down to each mistake, in the order of the list."""
        return [(number / self.mistakes, number / rank) for number, rank in enumerate(self.ranks, start=1)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with precision, recall and its interval at the top of the list, and their curve."""
        tops = [
            {"first": first, "hits": self.hits(first), "precision": self.hits(first) / first,
             "recall": self.recall(first), "interval": list(self.recall_interval(first))}
            for first in self.firsts
        ]  # fmt: skip
        return {
            **asdict(self),
            "ranks": list(self.ranks),
            "top": tops,
            "curve": [list(point) for point in self.curve()],
        }


def worst_order(suspicion: NDArray[np.float64], is_mistake: NDArray[np.bool_]) -> list[int]:
    """Indices of the rows, the highest suspicion first; of equal ones mistakes come last, so that no tie flatters.

    Args:
        suspicion: [B] of each row.
        is_mistake: [B].
    """
    order: list[int] = np.lexsort((is_mistake, -suspicion)).tolist()
    return order


def list_precision(is_mistake: Sequence[bool]) -> ListPrecision:
    """Precision of a list.

    Args:
        is_mistake: of each row in the order of the list; at least one is.
    """
    ranks = tuple(int(index) + 1 for index in np.flatnonzero(np.asarray(is_mistake)))
    precisions = [number / rank for number, rank in enumerate(ranks, start=1)]
    return ListPrecision(len(is_mistake), len(ranks), ranks, sum(precisions) / len(precisions))
