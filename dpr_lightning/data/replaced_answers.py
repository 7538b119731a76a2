"""Rows with another answer in place of their last learnt turn, in whatever shape the row is written."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from dpr_lightning.data.conversations import Example, to_demonstration
from dpr_lightning.data.row_types import Row
from dpr_lightning.errors import InputError


def with_answer(row: Row, answer: str, columns: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """The values of a row whose last learnt turn has another content; None where that turn is no text of the row.

    All other columns and turns stay as they are; a column that repeats the answer is changed too. A row whose turn has
    tool calls alone, or is joined of several parts, has no such text.

    Args:
        row: a demonstration.
        answer: the new content.
        columns: the file's names of our columns.

    Raises:
        InputError: the row is no demonstration.
    """
    example = to_demonstration(row, columns)
    before = example.learnt_contents[-1]
    if not before:
        return None
    for replace in (_whole_text, _end_of_text):
        values = {name: _replaced(value, before, answer, replace) for name, value in row.values.items()}
        if _has_only_another_answer(row._replace(values=values), example, answer, columns):
            return values
    return None


def _has_only_another_answer(row: Row, before: Example, answer: str, columns: Mapping[str, str] | None) -> bool:
    try:
        after = to_demonstration(row, columns)
    except InputError:
        return False
    same_prompt = after.prompt_text == before.prompt_text
    return same_prompt and after.learnt_contents == [*before.learnt_contents[:-1], answer]


Replace = Callable[[str, str, str], str]
"""From a text, what is replaced in it and the replacement to the new text."""


def _whole_text(text: str, before: str, after: str) -> str:
    return after if text == before else text


def _end_of_text(text: str, before: str, after: str) -> str:
    """With the last occurrence replaced: the answer is the last turn of a text with markers of turns."""
    start, found, end = text.rpartition(before)
    return f"{start}{after}{end}" if found else text


def _replaced(value: Any, before: str, after: str, replace: Replace) -> Any:
    """A value with the answer replaced in its texts, those in the JSON of a table's cell included."""
    if isinstance(value, Mapping):
        return {name: _replaced(inner, before, after, replace) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(inner, before, after, replace) for inner in value]
    if not isinstance(value, str):
        return value
    if value.lstrip()[:1] in ("[", "{") and value != before:
        try:
            content = json.loads(value)
        except ValueError:
            return replace(value, before, after)
        changed = _replaced(content, before, after, replace)
        return value if changed == content else json.dumps(changed, ensure_ascii=False)
    return replace(value, before, after)
