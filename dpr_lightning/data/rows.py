"""Rows of a JSON Lines file, a JSON array, a Parquet file or a ``datasets`` data set, each with its file and number.

Rows are read one after the other and never held all at once, so that a million of them need no more memory than one.
"""

import codecs
import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpr_lightning.data.row_types import Row, RowSource, file_hash, first_rows
from dpr_lightning.errors import InputError, first_line

__all__ = ["Row", "RowSource", "file_hash", "first_rows", "open_rows"]

SUFFIXES = (".jsonl", ".json", ".parquet")
MAGIC = {
    codecs.BOM_UTF16_LE: "text in UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "text in UTF-16: save it as UTF-8",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"BZh": "compressed by bzip2: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstandard: unpack it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"PAR1": "Parquet: let its name end in .parquet",
}
"""How files begin that are no JSON, and what to do with them."""


def open_rows(source: str | Path) -> RowSource:
    """Open a file by its suffix, a folder that ``datasets`` wrote, or a data set by its hub name.

    Args:
        source: path of a ``.jsonl``, ``.json`` (one object a line, or an array of objects) or ``.parquet`` file; a
            folder; or ``owner/name``, ``owner/name:split`` or ``owner/name:configuration:split`` (split: ``train``).

    Raises:
        InputError: there is no such file or data set, its format is unknown, or it is empty.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise InputError(f"{path} ends in {path.suffix!r}; rows are read from {', '.join(SUFFIXES)}. Convert it.")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes). Was the program that writes it interrupted?")
        if path.suffix == ".parquet":
            # Arrow takes 30 MB of every process that imports it.
            from dpr_lightning.data.parquet import ParquetRows

            return ParquetRows(path)
        head = _head(path)
        return JsonArrayRows(path) if path.suffix == ".json" and head.lstrip()[:1] == b"[" else JsonLinesRows(path)
    if path.is_dir() or not _looks_like_path(str(source)):
        return _open_dataset(str(source))
    raise InputError(_missing(path))


class JsonLinesRows:
    """One JSON object a line, in UTF-8; blank lines are passed over but counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.files: tuple[str, ...] = (self.name,)
        self.notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        """Parse line by line.

        Raises:
            InputError: a line is not UTF-8, not JSON or not an object, or no line holds anything.
        """
        found = False
        with self.path.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    found = True
                    yield _checked(self.name, number, _parse(self.name, number, line))
        if not found:
            raise InputError(f"{self.name} holds no rows, only blank lines.")

    def fingerprint(self) -> str:
        """SHA-256 of the bytes."""
        return file_hash(self.path)

    def count(self) -> int:
        """Number of lines."""
        total = 0
        with self.path.open("rb") as handle:
            while block := handle.read(1 << 22):
                total += block.count(b"\n")
        return total + 1


class JsonArrayRows:
    """One JSON array of objects; it is parsed whole, so JSON Lines is better for long files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.files: tuple[str, ...] = (self.name,)
        self.notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        """Parse the file, then yield its entries.

        Raises:
            InputError: the file is not UTF-8 or not JSON, or an entry is not an object.
        """
        values = _parse(self.name, None, self.path.read_bytes().removeprefix(codecs.BOM_UTF8))
        if not values:
            raise InputError(f"{self.name} holds no rows: its array is empty.")
        for number, value in enumerate(values, start=1):
            yield _checked(self.name, number, value)

    def fingerprint(self) -> str:
        """SHA-256 of the bytes."""
        return file_hash(self.path)

    def count(self) -> int:
        """Not known before parsing."""
        return 0


class DatasetRows:
    """The rows of a ``datasets.Dataset``, which Arrow keeps on disk."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name = name
        self.files: tuple[str, ...] = (name,)
        self.notes: tuple[str, ...] = ()
        self.dataset = dataset
        if len(dataset) == 0:
            raise InputError(f"The data set {name} holds no rows.")

    def __iter__(self) -> Iterator[Row]:
        """The rows in order."""
        for number, values in enumerate(self.dataset, start=1):
            yield Row(self.name, number, values)

    def fingerprint(self) -> str:
        """The fingerprint that ``datasets`` keeps of the content and its transformations."""
        return str(self.dataset._fingerprint)

    def count(self) -> int:
        """Number of rows."""
        return len(self.dataset)


def _open_dataset(source: str) -> DatasetRows:
    import datasets  # takes a second to import, and files do without it

    path = Path(source).expanduser()
    name, *options = [source] if path.is_dir() else source.split(":")
    split = options[-1] if options else "train"
    configuration = options[0] if len(options) == 2 else None
    try:
        if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
            dataset: Any = datasets.load_from_disk(str(path))
            if isinstance(dataset, datasets.DatasetDict):
                dataset = dataset[split]
        else:
            dataset = datasets.load_dataset(str(path) if path.is_dir() else name, configuration, split=split)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if path.is_dir():
            raise InputError(
                f"The folder {source} holds no data set that `datasets` can read ({first_line(error)}). It takes one "
                "that `save_to_disk` wrote, or a folder of Parquet or JSON files; or name a file."
            ) from error
        raise InputError(
            f"{source!r} is no file here, and `datasets` cannot load it ({first_line(error)}). Check the spelling; a "
            "split or configuration is written owner/name:split or owner/name:configuration:split."
        ) from error
    return DatasetRows(source, dataset)


def _looks_like_path(source: str) -> bool:
    if source.startswith(("/", "./", "../", "~")) or source.count("/") > 1:
        return True
    return Path(source).suffix in (*SUFFIXES, ".csv", ".txt", ".tsv", ".gz")


def _missing(path: Path) -> str:
    """What is there instead of a missing file."""
    folder = path.parent
    if not folder.is_dir():
        existing = next(parent for parent in (*folder.parents, Path("/")) if parent.is_dir())
        return f"There is no file {path}: the folder {folder} does not exist ({existing.resolve()} does)."
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if near:
        return f"There is no file {path}. Did you mean {' or '.join(str(folder / name) for name in near)}?"
    readable = [name for name in names if Path(name).suffix in SUFFIXES][:8]
    return f"There is no file {path}. {folder.resolve()} holds {', '.join(readable) or 'no file of rows'}."


def _parse(file: str, number: int | None, line: bytes) -> Any:
    place = file if number is None else f"{file}:{number}"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place}: byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8. Was the file saved in another "
            "encoding, such as Latin-1? Save it as UTF-8."
        ) from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{file}:{error.lineno}" if number is None else place
        excerpt = text[max(0, error.pos - 30) : error.pos + 30].strip()
        likely = "A row is one JSON object on one line; a line cut short points to an interrupted write."
        if "\0" in excerpt:
            likely = "A NUL byte belongs in no text: a file system leaves them where it lost what was written."
        raise InputError(
            f"{where}: malformed JSON at column {error.colno}: {error.msg}, near {excerpt!r}. {likely}"
        ) from error
    except RecursionError as error:
        raise InputError(f"{place}: the JSON is nested too deeply to be a row.") from error
    except ValueError as error:
        raise InputError(
            f"{place} holds a number of more digits than any measurement has. Write it as text."
        ) from error
    if "\\ud" in text or "\\uD" in text:
        _refuse_half_characters(place, value)
    return value


def _refuse_half_characters(place: str, value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("ascii", "backslashreplace").decode()
        raise InputError(
            f"{place} holds {half}, one half of a surrogate pair, which is no character. Whatever wrote the row cut a "
            "text between the two; cut it elsewhere."
        ) from error


def _checked(file: str, number: int, value: Any) -> Row:
    if not isinstance(value, dict):
        shown = json.dumps(value, ensure_ascii=False)
        raise InputError(
            f'{file}:{number}: a row must be a JSON object such as {{"prompt": …, "completion": …}}; found '
            f"{type(value).__name__} {shown[:60]}{'…' if len(shown) > 60 else ''}."
        )
    return Row(file, number, value)


def _head(path: Path) -> bytes:
    """How a file of JSON begins."""
    with path.open("rb") as handle:
        head = handle.read(4096)
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            raise InputError(f"{path} is {what}.")
    return head.removeprefix(codecs.BOM_UTF8)
