"""A row, and the interface of every source of rows."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dpr_lightning.errors import InputError

FILE_SHIFT = 40
"""Bits of a row's key below the index of its file."""


class Row(NamedTuple):
    """One row: its ``file``, its ``number`` in the file (from 1; of text files, the line) and its ``values``."""

    file: str
    number: int
    values: Mapping[str, Any]

    @property
    def location(self) -> str:
        """``file:number``, for messages."""
        return f"{self.file}:{self.number}"


class RowSource(Protocol):
    """A source of rows; each iteration starts at the first."""

    @property
    def name(self) -> str:
        """Name of the source, for messages."""
        ...

    @property
    def files(self) -> tuple[str, ...]:
        """Names of its files, equal to ``Row.file``."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about the source as a whole, a sentence each."""
        ...

    def __iter__(self) -> Iterator[Row]:
        """The rows in order."""
        ...

    def fingerprint(self) -> str:
        """Changes when the content does."""
        ...

    def count(self) -> int:
        """About how many rows there are, for a progress bar; 0: not known."""
        ...


def first_rows(source: RowSource, limit: int | None) -> Iterator[Row]:
    """The first ``limit`` rows; None: all.

    Raises:
        InputError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"`limit` must be at least 1 row; found {limit}.")
    return islice(source, limit)


def row_key(file: int, number: int) -> int:
    """One integer for a row of a source of many files; for the first file, the row's number."""
    return file << FILE_SHIFT | number


def locate(files: Sequence[str], key: int) -> tuple[str, int]:
    """File and number of a row, from its :func:`row_key`."""
    return files[key >> FILE_SHIFT], key & ((1 << FILE_SHIFT) - 1)


def row_hash(values: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that identify a row by its content, whatever its file and the order of its columns."""
    text = json.dumps(dict(values), ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
