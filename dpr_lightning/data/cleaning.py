"""Training rows with flagged ones dropped or answered anew, or with their suspicious parts masked or weighted."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from dpr_lightning.data.loss_spans import LOSS_SPANS, LossSpan, read_loss_spans
from dpr_lightning.data.messages import parse_json
from dpr_lightning.data.replaced_answers import with_answer
from dpr_lightning.data.row_types import Row, RowSource, row_hash
from dpr_lightning.data.rows import open_rows
from dpr_lightning.errors import InputError, counted
from dpr_lightning.folders import whole_file

SUSPICION = "suspicion"
"""Key of a span in a file of flagged rows: its mean suspicion, nats."""


class FlaggedRow(NamedTuple):
    """A flagged row: ``number`` in ``file``, with ``content`` from :func:`row_hash`.

    ``location`` is that of its line in the file of flagged rows, for messages; ``spans`` are its suspicious parts, and
    ``suspicion`` [spans] their means in nats, where they are known.
    """

    file: str
    number: int
    content: str
    location: str
    spans: tuple[LossSpan, ...] = ()
    suspicion: tuple[float | None, ...] = ()


class Cleaned(NamedTuple):
    """Counts of rows: the total of the file, those that were dropped or changed, and copies of flagged rows there.

    ``unchanged``: flagged rows that have no suspicious part to mask.
    """

    total: int
    dropped: int
    changed: int
    copies: int
    unchanged: int


class NewAnswer(NamedTuple):
    """The text that a flagged row gets as its last learnt turn."""

    text: str


Change = Callable[[FlaggedRow], tuple[LossSpan, ...] | NewAnswer | None]
"""From a flagged row to the spans or the answer that it gets; None: it is dropped."""


def change_of(how: str, flagged: list[FlaggedRow], threshold: float | None, temperature: float) -> Change:
    """What is done with each flagged row.

    Args:
        how: ``drop`` the row; ``mask`` its suspicious parts, which are then read and not learnt; ``weight`` their loss
            by w = σ((τ − s)/T), with s the mean suspicion of a part.
        flagged: all flagged rows.
        threshold: τ, nats; None: the median suspicion of all parts.
        temperature: T, nats.

    Raises:
        InputError: no flagged row has parts, or ``weight`` lacks their suspicion.
    """
    if how == "drop":
        return lambda row: None
    if not any(row.spans for row in flagged):
        raise InputError(
            f"No flagged row has {LOSS_SPANS}, so that nothing in them can be masked. Export the rows from a page of "
            "`dpr audit --rows train`, or choose `--how drop`."
        )
    if how == "mask":
        return lambda row: tuple(replace(span, weight=0.0) for span in row.spans)
    values = [value for row in flagged for value in row.suspicion]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        raise InputError(f"`--how weight` needs the `{SUSPICION}` of each of the {LOSS_SPANS}, which some rows lack.")
    if not temperature > 0:
        raise InputError(f"`--temperature` is {temperature:g} nats; it must be above 0.")
    middle = median(known) if threshold is None else threshold

    def weighted(row: FlaggedRow) -> tuple[LossSpan, ...]:
        weights = [1.0 / (1.0 + math.exp(min(700.0, ((s or 0.0) - middle) / temperature))) for s in row.suspicion]
        return tuple(replace(span, weight=round(weight, 4)) for span, weight in zip(row.spans, weights, strict=True))

    return weighted


def read_flagged(path: str, limit: int | None = None) -> list[FlaggedRow]:
    """The rows of a file of flagged rows, each once: what a page of an audit exports, or the list beside it.

    Args:
        path: of the file.
        limit: only so many, the first of the file; None: all.

    Raises:
        InputError: there is no such file, it has no rows, or a row is not of that format.
    """
    if limit is not None and limit < 1:
        raise InputError(f"`--top` is {limit}; it is a number of rows, 1 or more.")
    rows = {(row.file, row.number): row for row in map(_flagged, open_rows(path))}
    return list(rows.values())[:limit]


def write_cleaned(
    source: RowSource,
    flagged: list[FlaggedRow],
    output: Path,
    change: Change,
    columns: Mapping[str, str] | None = None,
) -> Cleaned:
    """Write the rows of a source as JSON lines, with all their columns; flagged ones and exact copies are changed.

    A flagged row of a file of the source is checked at its number there; one of another file, such as that of the rows
    held out, is recognised by its content.

    Args:
        source: the training rows.
        flagged: rows to change.
        output: file to write.
        change: from :func:`change_of`.
        columns: the file's names of our columns.

    Raises:
        InputError: a flagged row is not in the source, since the file has changed or another was audited; or no row
            would remain.
    """
    changes = {row.content: change(row) for row in flagged}
    column = (columns or {}).get(LOSS_SPANS, LOSS_SPANS)
    files = {os.path.realpath(file) for file in source.files}
    expected = {(file, row.number): row for row in flagged if (file := os.path.realpath(row.file)) in files}
    by_content: Counter[str] = Counter()
    total = 0
    with whole_file(output) as stream:
        for row in source:
            content = row_hash(row.values)
            mark = expected.pop((os.path.realpath(row.file), row.number), None)
            if mark is not None and mark.content != content:
                raise InputError(
                    f"{mark.location}: {row.location} has other content than the row that was flagged: the file has "
                    "changed since the audit. Run the audit again, and flag rows on its new page."
                )
            values: dict[str, Any] | None = dict(row.values)
            if content in changes:
                by_content[content] += 1
                values = _changed(row, changes[content], column, columns)
            if values is None:
                continue
            total += 1
            stream.write(json.dumps(values, ensure_ascii=False, default=str) + "\n")
        _check_all_there(source, flagged, [*expected.values()], by_content)
        if not total:
            raise InputError(f"All rows of {source.name} are flagged, so that none would remain.")
    flags = Counter(row.content for row in flagged)
    dropped = sum(count for content, count in by_content.items() if changes[content] is None)
    changed = sum(count for content, count in by_content.items() if changes[content])
    unchanged = by_content.total() - dropped - changed
    return Cleaned(total, dropped, changed, (by_content - flags).total(), unchanged)


def _changed(
    row: Row, change: tuple[LossSpan, ...] | NewAnswer | None, column: str, columns: Mapping[str, str] | None
) -> dict[str, Any] | None:
    """The values of a flagged row; None: it is dropped. Spans of a replaced answer go, since its characters do."""
    if isinstance(change, NewAnswer):
        without_spans = row._replace(values={name: value for name, value in row.values.items() if name != column})
        return with_answer(without_spans, change.text, columns)
    if change is None:
        return None
    spans = {column: [*_entries(row, column), *(span.to_dict() for span in change)]} if change else {}
    return {**row.values, **spans}


def _entries(row: Row, column: str) -> list[Any]:
    """The spans that a row has already."""
    value = row.values.get(column)
    value = parse_json(row, value, repr(column)) if isinstance(value, str) else value
    return list(value or [])


def _check_all_there(
    source: RowSource, flagged: list[FlaggedRow], beyond: list[FlaggedRow], seen: Mapping[str, int]
) -> None:
    if beyond:
        raise InputError(
            f"{beyond[0].location}: {beyond[0].file} has no row {beyond[0].number} now: the file has changed since the "
            "audit. Run the audit again, and flag rows on its new page."
        )
    missing = [row for row in flagged if row.content not in seen]
    if missing:
        first = missing[0]
        raise InputError(
            f"{first.location}: the row {first.file}:{first.number} is not among the training rows, {source.name} "
            f"({counted(len(missing), 'flagged row')} of {len(flagged)}). Flag rows on the page of `dpr check` or "
            "`dpr audit` of this run, whose data have not changed since."
        )


def _flagged(row: Row) -> FlaggedRow:
    values: Mapping[str, Any] = row.values
    kinds = {"file": str, "row": int, "hash": str}
    for name, kind in kinds.items():
        if not isinstance(values.get(name), kind):
            raise InputError(
                f"{row.location}: {name!r} is {values.get(name)!r}. `flagged` is the file that the button "
                "“Export flagged.jsonl” of an audit's page saves; export it again."
            )
    entries = [dict(entry) if isinstance(entry, Mapping) else entry for entry in _entries(row, LOSS_SPANS)]
    suspicion = tuple(entry.pop(SUSPICION, None) if isinstance(entry, dict) else None for entry in entries)
    spans = read_loss_spans(row._replace(values={LOSS_SPANS: entries}), LOSS_SPANS)
    return FlaggedRow(values["file"], values["row"], values["hash"], row.location, spans, suspicion)
