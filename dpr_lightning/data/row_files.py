"""Rows of text files: JSON Lines, a JSON array, CSV and TSV, compressed or not."""

import csv
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from dpr_lightning.data.row_streams import (
    COMPRESSED_SUFFIXES,
    DAMAGE,
    PARQUET,
    compression_of,
    count_lines,
    damaged,
    head_of,
    lines_of,
    open_bytes,
    suffix_of,
)
from dpr_lightning.data.row_types import Row, RowSource, file_hash
from dpr_lightning.errors import InputError, counted

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*JSON_SUFFIXES, *DELIMITERS, ".parquet")
FIELD_LIMIT = 1 << 28
"""Characters of the longest cell of a table."""


def open_file(path: Path) -> RowSource:
    """Open one file. Its format is recognised by its first bytes, or else by its suffix.

    Raises:
        InputError: it is empty, or of a format that is not supported.
    """
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes). Was the program that writes it interrupted?")
    suffix, head = suffix_of(path), head_of(path)
    compression = compression_of(path)
    if head.startswith(PARQUET) or suffix == ".parquet":
        if compression is not None:
            raise InputError(f"{path} is Parquet inside {compression}. Parquet compresses itself: unpack it.")
        # Importing Arrow takes 30 MB in every process.
        from dpr_lightning.data.parquet import ParquetRows

        return ParquetRows(path, _note(path, suffix, ".parquet", None))
    first = head.lstrip()[:1]
    if first == b"[" and (suffix in JSON_SUFFIXES or _is_json(head)):
        return JsonArrayRows(path, _note(path, suffix, ".json", compression))
    if suffix in JSON_SUFFIXES or _is_json(head):
        expected = ".jsonl" if suffix not in JSON_SUFFIXES else suffix
        return JsonLinesRows(path, _note(path, suffix, expected, compression))
    if suffix not in DELIMITERS:
        raise InputError(
            f"{path} ends in {suffix or path.suffix!r} and does not begin like JSON or Parquet; rows are read from "
            f"{', '.join(SUFFIXES)}, the texts also compressed ({', '.join(COMPRESSED_SUFFIXES)}). Convert it."
        )
    return TableRows(path, DELIMITERS[suffix], _note(path, suffix, suffix, compression))


def _note(path: Path, suffix: str, expected: str, compression: str | None) -> tuple[str, ...]:
    """A warning where a file's name does not fit its content."""
    if suffix != expected:
        return (f"{path.name} is read as {expected[1:]}, although its name ends in {suffix or path.suffix!r}",)
    if compression and path.suffix.lower() not in COMPRESSED_SUFFIXES:
        return (f"{path.name} is compressed by {compression}, although its name does not say so",)
    return ()


def _is_json(head: bytes) -> bool:
    """Whether the first line of a file is a JSON object or array, or begins one that is longer than ``head``."""
    line, end, _ = head.lstrip().partition(b"\n")
    if line[:1] not in (b"{", b"["):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return not end or line.strip() == b"["
    return True


class TextRows:
    """Base of the text formats: name, fingerprint and number of lines."""

    def __init__(self, path: Path, notes: tuple[str, ...] = ()) -> None:
        self.path = path
        self.name = str(path)
        self.files: tuple[str, ...] = (self.name,)
        self.notes = notes

    def fingerprint(self) -> str:
        """SHA-256 of the bytes."""
        return file_hash(self.path)

    def count(self) -> int:
        """Number of lines."""
        return count_lines(self.path) + 1


class JsonLinesRows(TextRows):
    """One JSON object a line, in UTF-8; blank lines are skipped but counted in the row numbers."""

    def __iter__(self) -> Iterator[Row]:
        """Parse line by line.

        Raises:
            InputError: a line is not UTF-8, not JSON or not an object, or every line is blank.
        """
        empty = True
        for number, line in enumerate(lines_of(self.path), start=1):
            if line.strip():
                empty = False
                yield _checked(self.name, number, _parse(self.name, number, line))
        if empty:
            raise InputError(f"{self.name} holds no rows, only blank lines.")


class JsonArrayRows(TextRows):
    """One JSON array of objects; it is parsed whole, so JSON Lines is better for long files."""

    def __iter__(self) -> Iterator[Row]:
        """Parse the file, then yield its entries.

        Raises:
            InputError: the file is not UTF-8 or not JSON, or an entry is not an object.
        """
        with open_bytes(self.path) as handle:
            try:
                content = handle.read()
            except DAMAGE as error:
                raise damaged(self.path, 0, error) from error
        values = _parse(self.name, None, content.removeprefix(b"\xef\xbb\xbf"))
        if not values:
            raise InputError(f"{self.name} holds no rows: its array is empty.")
        for number, value in enumerate(values, start=1):
            yield _checked(self.name, number, value)

    def count(self) -> int:
        """Not known before parsing."""
        return 0


class TableRows(TextRows):
    """CSV or TSV: a line of column names, then rows of texts. An empty cell is a missing key.

    Args:
        path: the file.
        delimiter: between cells, where the line of names has it; else the first of ``,`` ``;`` and tab that it has.
        notes: warnings about the file.
    """

    def __init__(self, path: Path, delimiter: str, notes: tuple[str, ...] = ()) -> None:
        super().__init__(path, notes)
        self.delimiter = delimiter

    def __iter__(self) -> Iterator[Row]:
        """Parse row by row; a row's number is the line on which it begins.

        Raises:
            InputError: a line is not UTF-8, a row has more or fewer cells than there are names, a name is missing or
                there twice, quotes are not closed, or there are no rows.
        """
        csv.field_size_limit(FIELD_LIMIT)
        lines = _decoded(self.name, lines_of(self.path))
        start: list[str] = []
        for line in lines:
            start.append(line)
            if line.strip():
                break
        header = start[-1] if start else ""
        delimiter = next((sign for sign in (self.delimiter, ",", ";", "\t") if sign in header), self.delimiter)
        reader = csv.reader(chain(start, lines), delimiter=delimiter, strict=True)
        names: list[str] = []
        number, rows = 0, 0
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise InputError(
                    f"{self.name}:{number}: this row of the table cannot be read ({error}). A text with quotes, "
                    f"{delimiter!r} or line breaks stands in double quotes, and quotes in it are doubled."
                ) from error
            if cells is None:
                break
            if not cells:
                continue
            if not names:
                names = self._names(number, cells)
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{self.name}:{number} has {counted(len(cells), 'cell')} and the table "
                    f"{counted(len(names), 'column')}. Is a text with "
                    f"{delimiter!r} in it without quotes around it?"
                )
            rows += 1
            values = {name: cell for name, cell in zip(names, cells, strict=True) if name and cell}
            yield Row(self.name, number, values)
        if rows == 0:
            raise InputError(f"{self.name} holds no rows, at most a line of column names.")

    def fingerprint(self) -> str:
        """SHA-256 of the bytes, with the delimiter that the file's name sets."""
        return f"{'csv' if self.delimiter == ',' else 'tsv'}:{super().fingerprint()}"

    def count(self) -> int:
        """Number of lines below the names, about that of rows."""
        return count_lines(self.path)

    def _names(self, number: int, cells: list[str]) -> list[str]:
        names = [cell.strip() for cell in cells]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if "" in names[1:]:  # the first may have none: programs number their rows there
            raise InputError(f"{self.name}:{number}: column {names.index('', 1) + 1} has no name. Give it one.")
        if repeated:
            raise InputError(f"{self.name}:{number}: two columns are called {repeated[0]!r}. Rename or remove one.")
        return names


def _decoded(file: str, lines: Iterator[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if b"\0" in line:
            raise InputError(
                f"{file}:{number}: a NUL byte belongs in no text: a file system leaves them where it lost what was "
                "written."
            )
        yield _decode(f"{file}:{number}", line)


def _decode(where: str, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8. Was the file saved in another "
            "encoding, such as Latin-1? Save it as UTF-8."
        ) from error


def _parse(file: str, number: int | None, line: bytes) -> Any:
    name = file if number is None else f"{file}:{number}"
    text = _decode(name, line)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{file}:{error.lineno}" if number is None else name
        excerpt = text[max(0, error.pos - 30) : error.pos + 30].strip()
        likely = "A row is one JSON object on one line; a line cut short points to an interrupted write."
        if "\0" in excerpt:
            likely = "A NUL byte belongs in no text: a file system leaves them where it lost what was written."
        raise InputError(
            f"{where}: malformed JSON at column {error.colno}: {error.msg}, near {excerpt!r}. {likely}"
        ) from error
    except RecursionError as error:
        raise InputError(f"{name}: the JSON is nested too deeply to be a row.") from error
    except ValueError as error:
        raise InputError(f"{name} holds a number of more digits than any measurement has. Write it as text.") from error
    if "\\ud" in text or "\\uD" in text:
        _refuse_half_characters(name, value)
    return value


def _refuse_half_characters(name: str, value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("ascii", "backslashreplace").decode()
        raise InputError(
            f"{name} holds {half}, one half of a surrogate pair, which is no character. Whatever wrote the row cut a "
            "text between the two; cut it elsewhere."
        ) from error


def _checked(file: str, number: int, value: Any) -> Row:
    if not isinstance(value, dict):
        text = json.dumps(value, ensure_ascii=False)
        raise InputError(
            f'{file}:{number}: a row must be a JSON object such as {{"prompt": …, "completion": …}}; found '
            f"{type(value).__name__} {text[:60]}{'…' if len(text) > 60 else ''}."
        )
    return Row(file, number, value)
