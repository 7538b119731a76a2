"""Every form of row on docs/your_data.md teaches the same."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from dpr_lightning.data.conversations import to_demonstration
from dpr_lightning.data.row_shapes import recognise
from dpr_lightning.data.row_types import Row
from tests.pages.blocks import ROOT, blocks


def rows() -> Iterator[dict[str, Any]]:
    """The rows of the page that no command reads; a row may have several lines."""
    for block in blocks((ROOT / "docs" / "your_data.md").read_text(encoding="utf-8")):
        rest = block.code if block.language == "json" and not block.file else ""
        while rest.strip():
            row, end = json.JSONDecoder().raw_decode(rest.lstrip())
            yield row
            rest = rest.lstrip()[end:]


def last(turns: Any, role: str) -> str:
    """The content of the last turn of a role; a text stands for itself."""
    return turns if isinstance(turns, str) else [turn["content"] for turn in turns if turn["role"] == role][-1]


@pytest.mark.parametrize("row", [*rows()], ids=lambda row: "_".join(row))
def test_a_form_of_row(row: dict[str, Any]) -> None:
    result = recognise(Row("page.jsonl", 1, row))
    if "loss_spans" in row:
        assert len(to_demonstration(Row("page.jsonl", 1, row)).loss_spans) == len(row["loss_spans"])
    prompt = last(result.prompt if result.messages is None else result.messages, "user")
    completion = last(result.completion if result.messages is None else result.messages, "assistant")
    assert prompt.removeprefix("No. Again: ") == "128 + 384 ="
    assert completion == "512"
