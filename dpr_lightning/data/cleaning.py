"""Training rows without those that a person marked as wrong."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dpr_lightning.data.row_types import Row, RowSource, row_hash
from dpr_lightning.data.rows import open_rows
from dpr_lightning.errors import InputError, counted
from dpr_lightning.folders import whole_file

DROP = "drop"


class FlaggedRow(NamedTuple):
    """A row marked as wrong: ``number`` in ``file``, with ``content`` from :func:`row_hash`.

    ``location`` is that of its line in the file of flagged rows, for messages.
    """

    file: str
    number: int
    content: str
    location: str


class Cleaned(NamedTuple):
    """Counts of rows: ``remaining`` ones, ``dropped`` ones, and ``copies`` of flagged rows among these."""

    remaining: int
    dropped: int
    copies: int


def read_flagged(path: str) -> list[FlaggedRow]:
    """The rows that were exported from the page of an audit, each once.

    Raises:
        InputError: there is no such file, it has no rows, or a row is not of that export.
    """
    rows = {(row.file, row.number): row for row in map(_flagged, open_rows(path))}
    return list(rows.values())


def write_cleaned(source: RowSource, flagged: list[FlaggedRow], output: Path) -> Cleaned:
    """Write the rows of a source as JSON lines, with all their columns, but for flagged ones and exact copies of them.

    A flagged row of a file of the source is checked at its number there; one of another file, such as that of the rows
    held out, is recognised by its content.

    Args:
        source: the training rows.
        flagged: rows to drop.
        output: file to write.

    Raises:
        InputError: a flagged row is not in the source, since the file has changed or another was audited; or no row
            would remain.
    """
    contents = {row.content for row in flagged}
    files = {os.path.realpath(file) for file in source.files}
    expected = {(file, row.number): row for row in flagged if (file := os.path.realpath(row.file)) in files}
    by_content: Counter[str] = Counter()
    remaining = 0
    with whole_file(output) as stream:
        for row in source:
            content = row_hash(row.values)
            mark = expected.pop((os.path.realpath(row.file), row.number), None)
            if mark is not None and mark.content != content:
                raise InputError(
                    f"{mark.location}: {row.location} has other content than the row that was flagged: the file has "
                    "changed since the audit. Run the audit again, and flag rows on its new page."
                )
            if content in contents:
                by_content[content] += 1
                continue
            remaining += 1
            stream.write(json.dumps(dict(row.values), ensure_ascii=False, default=str) + "\n")
        _check_all_there(source, flagged, [*expected.values()], by_content)
        if not remaining:
            raise InputError(f"All rows of {source.name} are flagged, so that none would remain.")
    flags = Counter(row.content for row in flagged)
    return Cleaned(remaining, by_content.total(), (by_content - flags).total())


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
    kinds = {"file": str, "row": int, "hash": str, "action": str}
    for name, kind in kinds.items():
        if not isinstance(values.get(name), kind):
            raise InputError(
                f"{row.location}: {name!r} is {values.get(name)!r}. `flagged` is the file that the button "
                "“Export flagged.jsonl” of an audit's page saves; export it again."
            )
    if values["action"] != DROP:
        raise InputError(f"{row.location}: `action` is {values['action']!r}, and a row can be dropped alone: {DROP!r}.")
    return FlaggedRow(values["file"], values["row"], values["hash"], row.location)
