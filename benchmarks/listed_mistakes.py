"""How many rows and characters that `dpr audit --rows train` or an arm of `dpr compare` lists are mistakes of a toy.

    python -m benchmarks.listed_mistakes runs/noisy/data/oracle_masked.jsonl runs/audit/train.listed.jsonl
    python -m benchmarks.listed_mistakes runs/compare/noisy/seed_81/data/oracle_masked.jsonl \\
        runs/compare/noisy/seed_81/cleaned_rows/cleaned.json

`dpr toy --noise` writes the first file: the demonstrations with their mistakes as `loss_spans`.
"""

import json
import sys
from pathlib import Path
from typing import Any

FIRST = (10, 20, 25, 50, 80, 90, 100, 200)


def count(oracle: list[dict[str, Any]], listed: list[dict[str, Any]], first: int) -> tuple[int, int, int, int]:
    """Rows among the ``first`` listed that are wrong; characters marked there, wrong ones of these, and all wrong ones.

    Args:
        oracle: rows in their order, wrong ones with ``loss_spans``.
        listed: lines of the list, with ``row`` (from 1) and ``loss_spans``.
        first: so many lines of it.
    """
    wrong = {number: _characters(row) for number, row in enumerate(oracle, start=1) if "loss_spans" in row}
    rows = [row for row in listed[:first] if row["row"] in wrong]
    marked = [(_characters(row), wrong.get(row["row"], set())) for row in listed[:first]]
    hits = sum(len(characters & truth) for characters, truth in marked)
    return len(rows), sum(len(characters) for characters, _ in marked), hits, sum(map(len, wrong.values()))


def _characters(row: dict[str, Any]) -> set[int]:
    return {index for span in row["loss_spans"] for index in range(span["start"], span["end"])}


def read_listed(path: Path) -> list[dict[str, Any]]:
    """The rows of a list of `dpr audit`, or of the JSON file that an arm with `clean` leaves in `cleaned_rows/`."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return [json.loads(line) for line in text.splitlines()]
    return [
        {"row": row["number"], "loss_spans": [{"start": start, "end": end} for start, end in row["spans"]]}
        for row in json.loads(text)["rows"]
    ]


def main(oracle: str, listed: str) -> None:
    """Print the counts."""
    truth = [json.loads(line) for line in Path(oracle).read_text(encoding="utf-8").splitlines()]
    rows_listed = read_listed(Path(listed))
    for first in sorted({*(number for number in FIRST if number < len(rows_listed)), len(rows_listed)}):
        rows, marked, hits, wrong = count(truth, rows_listed, first)
        print(f"first {first}: {rows} rows are wrong; {marked} characters marked, {hits} of {wrong} wrong ones")


if __name__ == "__main__":
    main(*sys.argv[1:])
