"""Rows of several files, one file after the other, each repeated or reduced by its weight."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from os.path import realpath
from random import Random
from typing import NotRequired, TypedDict

from dpr_lightning.data.row_types import Row, RowSource, first_rows
from dpr_lightning.errors import InputError
from dpr_lightning.paths import RowPath

BLOCK = 1024
"""Rows in a block, of each of which the fractional part of a weight selects a share."""


class RowFile(TypedDict):
    """Rows with a weight, as a config has them: ``{path: a.jsonl, weight: 2}``.

    Attributes:
        path: a file, a folder, a pattern such as ``shards/*.jsonl``, or the name of a data set.
        weight: how often each row is used in an epoch; 1 where it is left out. 2: twice; 0.5: half of the rows, always
            the same ones, once; 2.5: every row twice and half of them once more.
        limit: read only so many rows of it; all where it is left out.
    """

    path: RowPath
    weight: NotRequired[float]
    limit: NotRequired[int]


class LimitedRows:
    """The first rows of a source.

    Args:
        source: of the rows.
        limit: number of rows.

    Raises:
        InputError: a limit below 1.
    """

    def __init__(self, source: RowSource, limit: int) -> None:
        first_rows(source, limit)
        self.source, self.limit = source, limit
        self.name, self.files, self.notes = source.name, source.files, source.notes

    def __iter__(self) -> Iterator[Row]:
        """The rows in order."""
        return first_rows(self.source, self.limit)

    def fingerprint(self) -> str:
        """That of the source, with the limit."""
        return f"{self.source.fingerprint()}:{self.limit}"

    def count(self) -> int:
        """At most this many."""
        return min(self.limit, self.source.count() or self.limit)


class MixedRows:
    """The rows of several sources in turn.

    Args:
        name: of the whole, for messages.
        parts: the sources with their weights.
        notes: warnings about the whole.

    Raises:
        InputError: a weight is not above 0, or a file is named twice.
    """

    def __init__(self, name: str, parts: Sequence[tuple[RowSource, float]], notes: Iterable[str] = ()) -> None:
        self.name = name
        self.parts = list(parts)
        for source, weight in self.parts:
            if not (math.isfinite(weight) and weight > 0):
                raise InputError(
                    f"The weight of {source.name} is {weight}: it is how often a row counts in an epoch, such as 2 or "
                    "0.5. Leave the file out of the list to do without it."
                )
        self.files: tuple[str, ...] = tuple(file for source, _ in self.parts for file in source.files)
        self.notes: tuple[str, ...] = (*notes, *(note for source, _ in self.parts for note in source.notes))
        repeated, count = Counter(map(realpath, self.files)).most_common(1)[0]
        if count > 1:
            raise InputError(
                f"{repeated} is named {count} times. To count its rows so often, name it once, with a weight: "
                f"[{{path: {repeated}, weight: {count}}}]."
            )

    def __iter__(self) -> Iterator[Row]:
        """The rows in order, repeated or left out by the weights.

        Raises:
            InputError: a weight leaves no row of its file.
        """
        for source, weight in self.parts:
            if weight == 1:
                yield from source
                continue
            rows = 0
            for row in _weighted(source, weight):
                rows += 1
                yield row
            if rows == 0:
                raise InputError(f"The weight {weight} leaves no row of {source.name}, which is too short for it.")

    def fingerprint(self) -> str:
        """Hash of the parts' fingerprints and weights."""
        parts = [[source.fingerprint(), weight] for source, weight in self.parts]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def count(self) -> int:
        """About how many rows an epoch has; 0 where a part's number is not known."""
        counts = [source.count() * weight for source, weight in self.parts]
        return 0 if 0 in counts else round(sum(counts))


def _weighted(rows: Iterable[Row], weight: float) -> Iterator[Row]:
    """Each row as often as the integer part of the weight, and a share of each block once more.

    The share depends on the block's number alone, so that every rank, every epoch and a resumed run read the same
    rows.
    """
    whole, share = divmod(weight, 1)
    remaining, number = iter(rows), 0
    while block := list(islice(remaining, BLOCK)):
        again = set(Random(number).sample(range(len(block)), round(share * len(block))))
        number += 1
        for index, row in enumerate(block):
            for _ in range(int(whole) + (index in again)):
                yield row
