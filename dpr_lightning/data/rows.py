"""Rows of a file, of a folder or a pattern of files, of a list of them, or of a ``datasets`` data set.

Rows are read one after the other and never all at once, so that a million of them need no more memory than one.
"""

import difflib
import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpr_lightning.data.row_files import DELIMITERS, SUFFIXES, open_file
from dpr_lightning.data.row_mixtures import LimitedRows, MixedRows, RowFile
from dpr_lightning.data.row_streams import COMPRESSED_SUFFIXES, suffix_of
from dpr_lightning.data.row_types import Row, RowSource, file_hash, first_rows
from dpr_lightning.errors import InputError, first_line
from dpr_lightning.paths import RowPath

__all__ = ["Row", "RowFile", "RowSource", "Rows", "file_hash", "first_rows", "local_files", "open_rows"]

Rows = RowPath | list[RowPath | RowFile]
"""Value of an option that names rows: a path, pattern or data set, or a list of them, optionally with weights."""
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files of a data set's folder that have no rows."""
SAVED = ("state.json", "dataset_dict.json")
"""Files that ``save_to_disk`` writes into its folder."""
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Names of the files of a data set's splits."""
HUB_LIKENESS = 0.8
"""How alike the names of a missing file and of one in the same folder are, from which ``owner/name`` is that file."""


def open_rows(source: Rows | Path | RowSource) -> RowSource:
    """Open rows by the name of a file, a folder, a pattern or a data set, or by a list of such names.

    Args:
        source: path of a ``.jsonl``, ``.json`` (one object a line, or an array of objects), ``.csv``, ``.tsv`` or
            ``.parquet`` file, texts also compressed (``.gz``, ``.bz2``, ``.xz``, ``.zst``); a folder of such files, or
            one that ``save_to_disk`` wrote; a pattern such as ``shards/*.jsonl`` or ``data/**/*.parquet``; a data
            set, ``owner/name``, ``owner/name:split`` or ``owner/name:configuration:split`` (split: ``train``); or a
            list of these. Rows that are open already are returned.

    Raises:
        InputError: there is no such file or data set, its format is unknown, or it is empty.
    """
    if isinstance(source, list):
        return _open_list(source)
    if not isinstance(source, (str, Path)):
        return source
    text = str(source)
    path = Path(text).expanduser()
    if path.is_file():
        return open_file(path)
    if path.is_dir():
        return _open_folder(text, path)
    if text.lstrip()[:1] in ("[", "{") and not _matches(path):
        raise InputError(f"{text} is no list of files. Write for example [a.jsonl, {{path: b.jsonl, weight: 2}}].")
    if _is_pattern(text):
        return _open_pattern(text, path)
    if _looks_like_path(text) or _is_misspelt(text):
        raise InputError(_missing(path))
    return _open_dataset(text)


def local_files(source: Rows | Path) -> list[Path]:
    """The existing files of a source, sorted; empty for a data set of the hub or a missing file."""
    if isinstance(source, list):
        names = [part if isinstance(part, str) else part["path"] for part in source]
        return [file for name in names for file in local_files(name)]
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(part for part in path.rglob("*") if part.is_file() and not _is_hidden(part, path))
    return _matches(path) if _is_pattern(str(source)) else []


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
        """The fingerprint that ``datasets`` computes of the content and its transformations."""
        return str(self.dataset._fingerprint)

    def count(self) -> int:
        """Number of rows."""
        return len(self.dataset)


def _open_list(parts: list[str | RowFile]) -> RowSource:
    if not parts:
        raise InputError("The list of files of rows is empty. Name at least one.")
    files = [RowFile(path=part) if isinstance(part, str) else part for part in parts]
    sources: list[tuple[RowSource, float]] = []
    for file in files:
        source, limit = open_rows(file["path"]), file.get("limit")
        sources.append((source if limit is None else LimitedRows(source, limit), file.get("weight", 1.0)))
    rest = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return MixedRows(f"{files[0]['path']}{rest}", sources)


def _open_folder(name: str, path: Path) -> RowSource:
    if any((path / saved).is_file() for saved in SAVED):
        return _open_dataset(name)
    files = local_files(path)
    readable = [file for file in files if _is_rows(file)]
    if not readable:
        return _open_dataset(name)
    splits = {split: file for file in reversed(readable) if (split := _split_of(file.relative_to(path))) is not None}
    if len(splits) > 1:
        patterns = [f"{name.rstrip('/')}/{_pattern_of(file.relative_to(path))}" for file in splits.values()]
        raise InputError(
            f"The folder {name} holds files of several splits ({', '.join(sorted(splits))}), which are not mixed. "
            f"Name those that are meant, for example {' or '.join(sorted(patterns))}."
        )
    left = [file.name for file in files if file not in readable and file.name not in DESCRIPTIONS]
    names = ", ".join(left[:3]) + (" …" if len(left) > 3 else "")
    notes = [f"files of other kinds in the folder are not read: {names}"] if left else []
    return MixedRows(name, [(open_file(file), 1.0) for file in readable], notes)


def _open_pattern(name: str, path: Path) -> RowSource:
    files = _matches(path)
    if not files:
        fixed = next(parent for parent in path.parents if not _is_pattern(str(parent)))
        raise InputError(f"No file matches {name}. {_contents(fixed) if fixed.is_dir() else _missing(fixed / '…')}")
    return MixedRows(name, [(open_file(file), 1.0) for file in files])


def _is_pattern(name: str) -> bool:
    return glob.has_magic(name)


def _matches(path: Path) -> list[Path]:
    """The files that a pattern matches, sorted; hidden ones are not."""
    return sorted(file for match in glob.glob(str(path), recursive=True) if (file := Path(match)).is_file())


def _is_rows(path: Path) -> bool:
    return suffix_of(path) in SUFFIXES and path.name not in DESCRIPTIONS


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _split_of(path: Path) -> str | None:
    """The split of a data set in a file's path, by the naming of the Hub; None without."""
    words = re.split(r"[^a-z]+", str(path).lower())
    return next((split for split, names in SPLITS.items() if not set(names).isdisjoint(words)), None)


def _pattern_of(path: Path) -> str:
    """A pattern for the files of the same split in the same folder."""
    words = [name for names in SPLITS.values() for name in names]
    named = next((part for part in path.parts if set(re.split(r"[^a-z]+", part.lower())) & set(words)), path.name)
    if named != path.name:
        return f"{Path(*path.parts[: path.parts.index(named) + 1])}/**"
    word = next(word for word in re.split(r"[^A-Za-z]+", named) if word.lower() in words)
    start = named.index(word)
    return str(path.with_name(f"{'*' if start else ''}{word}*"))


def _open_dataset(source: str) -> DatasetRows:
    import datasets  # takes a second to import, and files do not need it

    path = Path(source).expanduser()
    name, *options = [source] if path.is_dir() else source.split(":")
    split = options[-1] if options else "train"
    configuration = options[0] if len(options) == 2 else None
    try:
        if path.is_dir() and any((path / saved).is_file() for saved in SAVED):
            dataset: Any = datasets.load_from_disk(str(path))
            if isinstance(dataset, datasets.DatasetDict):
                dataset = dataset[split]
        else:
            dataset = datasets.load_dataset(str(path) if path.is_dir() else name, configuration, split=split)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if path.is_dir():
            raise InputError(
                f"The folder {source} holds no data set that `datasets` can read ({first_line(error)}). It takes one "
                f"that `save_to_disk` wrote, or a folder of files of rows ({', '.join(SUFFIXES)}); or name a file."
            ) from error
        raise InputError(
            f"{source!r} is no file here, and `datasets` cannot load it ({first_line(error)}). Check the spelling; a "
            "split or configuration is written owner/name:split or owner/name:configuration:split."
        ) from error
    return DatasetRows(source, dataset)


def _looks_like_path(source: str) -> bool:
    if source.startswith(("/", "./", "../", "~")) or source.count("/") > 1:
        return True
    return Path(source).suffix.lower() in (*SUFFIXES, *DELIMITERS, *COMPRESSED_SUFFIXES, ".txt")


def _is_misspelt(source: str) -> bool:
    """Whether a name is not sent to the hub: it has no owner, or a file of almost that name is in the folder."""
    name, *split = source.split(":")
    if "/" not in name:
        return True
    folder = Path(name).parent
    if split or not folder.is_dir():
        return False
    names = [entry.name for entry in folder.iterdir() if entry.is_dir() or _is_rows(entry)]
    return bool(difflib.get_close_matches(Path(name).name, names, n=1, cutoff=HUB_LIKENESS))


def _missing(path: Path) -> str:
    """What exists instead of a missing file, for the error message."""
    folder = path.parent
    if not folder.is_dir():
        existing = next(parent for parent in (*folder.parents, Path("/")) if parent.is_dir())
        return f"There is no file {path}: the folder {folder} does not exist ({existing.resolve()} does)."
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(str(folder / name) for name in near)}?" if near else _contents(folder)
    hub = "" if _looks_like_path(str(path)) else " A data set of the hub is written owner/name, or owner/name:split."
    return f"There is no file {path}. {meant}{hub}"


def _contents(folder: Path) -> str:
    readable = sorted(entry.name for entry in folder.iterdir() if _is_rows(entry) and entry.name[0] != ".")[:8]
    return f"{folder.resolve()} holds {', '.join(readable) or 'no file of rows'}."
