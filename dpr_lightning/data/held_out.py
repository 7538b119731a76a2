"""Rows of the training source that are held out for validation: how many, which, and the file that lists them."""

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpr_lightning.data.prompt_identity import hold_out_prompts, scrambled
from dpr_lightning.data.row_types import Row, RowSource, row_key
from dpr_lightning.data.rows import Rows, open_rows
from dpr_lightning.data.tokenized import TokenizedDataset
from dpr_lightning.errors import InputError, counted
from dpr_lightning.folders import put_aside, whole_file

log = logging.getLogger(__name__)
AUTO = "auto"
SHARE = 0.05
"""Share of the prompts that ``auto`` holds out."""
ENOUGH_ROWS = 20
"""``auto`` holds out more prompts than that until they have so many rows."""
LARGEST_PART = 5
"""``auto`` never holds out more than one of so many prompts, nor more than one of so many rows."""


def holds_out(validation: Any) -> bool:
    """Whether a value of ``validation`` holds out rows of ``train``, and does not name another source."""
    return validation == AUTO or isinstance(validation, float)


class Split(NamedTuple):
    """Demonstrations to learn from, and those held out; None: there are none."""

    train: TokenizedDataset
    validation: TokenizedDataset | None


def split_off(data: TokenizedDataset, share: float | str, seed: int) -> Split:
    """Hold out all rows of some prompts, so that no prompt is on both sides.

    A row that counts several times by its weight is held out once.

    Args:
        data: the whole.
        share: of the prompts; or ``auto``: see :func:`hold_out_by_default`.
        seed: of the choice of prompts.

    Raises:
        InputError: there are too few prompts for the share.
    """
    _, first = np.unique(data.numbers, return_index=True)  # of the rows that are repeated
    hashes = data.prompt_hashes[np.sort(first)]
    if isinstance(share, str):
        held_out = hashes[hold_out_by_default(hashes, seed)]
    else:
        held_out = hashes[hold_out_prompts(hashes, share, seed, data.file)]
    if not len(held_out):
        return Split(data, None)
    is_held_out = np.isin(data.prompt_hashes, held_out)
    is_first = np.zeros(len(data), dtype=np.bool_)
    is_first[first] = True
    train, validation = (np.flatnonzero(mask) for mask in (~is_held_out, is_held_out & is_first))
    return Split(data.select(train), data.select(validation))


def hold_out_by_default(prompt_hashes: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """[N] True for the rows to hold out: all rows of 5% of the prompts, or of more until they have 20 rows.

    Never more than a fifth of the prompts or of the rows; none of fewer than five prompts. The choice depends on the
    prompts' texts and on ``seed``, not on the order of the rows.

    Args:
        prompt_hashes: [N] from :func:`~dpr_lightning.data.prompt_identity.prompt_hash`.
        seed: of the choice.
    """
    unique, inverse, rows = np.unique(prompt_hashes, return_inverse=True, return_counts=True)
    most_prompts, most_rows = len(unique) // LARGEST_PART, len(prompt_hashes) // LARGEST_PART
    order = np.argsort(scrambled(unique, seed), kind="stable")
    order = order[rows[order] <= most_rows]
    total = np.cumsum(rows[order])
    enough = int(np.searchsorted(total, ENOUGH_ROWS)) + 1
    fitting = int(np.searchsorted(total, most_rows, side="right"))
    selected = np.zeros(len(unique), dtype=np.bool_)
    selected[order[: min(max(round(SHARE * len(unique)), enough), most_prompts, fitting)]] = True
    result: NDArray[np.bool_] = selected[inverse]
    return result


def report_split(split: Split, file: str) -> str:
    """One line on what ``auto`` holds out of a file, and how to change that."""
    if split.validation is None:
        prompts = counted(len(np.unique(split.train.prompt_hashes)), "different prompt")
        return (
            f"{file}: {prompts} are too few to hold some out for validation, so nothing is validated. "
            "`data.validation` names a file of further rows."
        )
    rows, prompts = (
        counted(len(split.validation), "row"),
        counted(len(np.unique(split.validation.prompt_hashes)), "prompt"),
    )
    return (
        f"{file}: {rows} of {prompts} are held out for validation, and {counted(len(split.train), 'row')} are learnt "
        "from. `data.validation` changes that: a file, a share such as 0.1, or null for none."
    )


class SelectedRows:
    """Some rows of a source, in its order, each once.

    Args:
        source: of the rows.
        keys: of the rows to select, from :func:`~dpr_lightning.data.row_types.row_key` with its files.
    """

    def __init__(self, source: RowSource, keys: Collection[int]) -> None:
        self.source, self.keys = source, frozenset(keys)
        self.name, self.files, self.notes = source.name, source.files, source.notes

    def __iter__(self) -> Iterator[Row]:
        """The rows in order; the source is read up to the last of them."""
        index = {file: number for number, file in enumerate(self.files)}
        remaining = set(self.keys)
        for row in self.source if remaining else ():
            key = row_key(index[row.file], row.number)
            if key in remaining:
                remaining.remove(key)
                yield row
                if not remaining:
                    return

    def fingerprint(self) -> str:
        """Hash of the source's fingerprint and the keys."""
        return hashlib.sha256(json.dumps([self.source.fingerprint(), sorted(self.keys)]).encode()).hexdigest()

    def count(self) -> int:
        """Number of rows."""
        return len(self.keys)


def rows_of(source: Rows, data: TokenizedDataset) -> list[Row]:
    """The row of each demonstration, in their order; one that counts several times by its weight is there as often."""
    opened = open_rows(source)
    index = {file: number for number, file in enumerate(opened.files)}
    rows = {row_key(index[row.file], row.number): row for row in SelectedRows(opened, data.numbers.tolist())}
    return [rows[key] for key in data.numbers.tolist()]


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write rows with all their columns as JSON lines, atomically.

    A file that has these rows already stays as it is; any other is renamed to ``NAME.before_1``.

    Raises:
        InputError: the path is a folder.
    """
    if path.is_dir():
        raise InputError(f"`data.held_out_file`: {path} is a folder. Name a file, such as {path / 'held_out.jsonl'}.")
    text = "".join(json.dumps(dict(row.values), ensure_ascii=False, default=str) + "\n" for row in rows)
    content = text.encode("utf-8")
    if path.is_file():
        if path.read_bytes() == content:
            return
        log.warning("%s has other rows than those that are held out now; it is renamed to %s.", path, put_aside(path))
    with whole_file(path) as stream:
        stream.write(text)
