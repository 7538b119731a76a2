"""Rows of a Parquet file."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from dpr_lightning.data.row_types import Row, file_hash
from dpr_lightning.errors import InputError, first_line


class ParquetRows:
    """The rows of a Parquet file, a thousand in memory at a time."""

    def __init__(self, path: Path, notes: tuple[str, ...] = ()) -> None:
        self.path = path
        self.name = str(path)
        self.files: tuple[str, ...] = (self.name,)
        self.notes = notes
        try:
            self.rows = int(pyarrow.parquet.ParquetFile(path).metadata.num_rows)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path} is no readable Parquet file ({first_line(error)}). Write it again.") from error
        if self.rows == 0:
            raise InputError(f"{path} holds no rows.")

    def __iter__(self) -> Iterator[Row]:
        """Read batch by batch.

        Raises:
            InputError: the file is damaged.
        """
        number = 0
        try:
            for batch in pyarrow.parquet.ParquetFile(self.path).iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(self.name, number, values)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(
                f"{self.name} is damaged after row {number} ({first_line(error)}). Write it again."
            ) from error

    def fingerprint(self) -> str:
        """SHA-256 of the bytes."""
        return file_hash(self.path)

    def count(self) -> int:
        """Number of rows."""
        return self.rows
