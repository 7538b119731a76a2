"""The bytes of a file of rows; compressed files are decompressed as they are read."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from dpr_lightning.errors import InputError, first_line

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
"""First bytes of compressed files."""
COMPRESSED_SUFFIXES = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd")
PARQUET = b"PAR1"
REFUSED = {
    codecs.BOM_UTF16_LE: "text in UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "text in UTF-16: save it as UTF-8",
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or save it as CSV",
    b"ARROW1": "an Arrow file: save it as Parquet",
}
"""First bytes of files of unsupported formats, and the remedy."""
TAR = slice(257, 262)
"""Offset of the signature of a tar archive."""
HEAD = 4096


def suffix_of(path: Path) -> str:
    """The suffix of the format in lower case; that of a compression is ignored."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED_SUFFIXES else path
    return inner.suffix.lower()


def compression_of(path: Path) -> str | None:
    """The compression of a file, recognised by its first bytes; None without."""
    with path.open("rb") as handle:
        head = handle.read(8)
    return next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)


def head_of(path: Path) -> bytes:
    """The first bytes of the content, without a byte order mark.

    Raises:
        InputError: the content is of an unsupported format, or cannot be decompressed.
    """
    with open_bytes(path) as handle:
        try:
            head = handle.read(HEAD)
        except DAMAGE as error:
            raise damaged(path, 0, error) from error
    for magic, what in REFUSED.items():
        if head.startswith(magic):
            raise InputError(f"{path} is {what}.")
    if head[TAR] == b"ustar":
        raise InputError(f"{path} is a tar archive: unpack it, and name the files or their folder.")
    return head.removeprefix(codecs.BOM_UTF8)


DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""Exceptions of decompression for damaged files."""


def damaged(path: Path, line: int, error: BaseException) -> InputError:
    """The error for a file that cannot be decompressed to its end."""
    return InputError(
        f"{path} is damaged after line {line} of its content ({first_line(error)}). Was it copied or written whole? "
        "Write it again."
    )


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading; a compressed one yields its content as it is decompressed, in constant memory."""
    kind = compression_of(path)
    if kind is None:
        with path.open("rb") as plain:
            yield plain
    elif kind == "zstandard":
        import pyarrow  # takes 30 MB in every process

        with pyarrow.OSFile(str(path)) as file, pyarrow.CompressedInputStream(file, "zstd") as stream:
            yield cast(IO[bytes], io.BufferedReader(stream))
    else:
        open_file: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[kind]
        with open_file(path) as compressed:
            yield compressed


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, the first without a byte order mark.

    Raises:
        InputError: the compressed file is damaged; the message names the last good line.
    """
    number = 0
    with open_bytes(path) as handle:
        try:
            for line in handle:
                number += 1
                yield line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        except DAMAGE as error:
            raise damaged(path, number, error) from error


def count_lines(path: Path) -> int:
    """Number of line ends; 0 for a damaged file, whose error is raised when its rows are read."""
    total = 0
    try:
        with open_bytes(path) as handle:
            while block := handle.read(1 << 22):
                total += block.count(b"\n")
    except DAMAGE:
        return 0
    return total
