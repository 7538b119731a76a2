"""Writes the page of architectures: ``python -m tests.architectures docs/architectures.md``."""

import sys
from pathlib import Path

from tests.architectures.page import page, rows

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(rows()), encoding="utf-8")
