"""Rows with another answer, in every shape that is read: nothing else of the row changes."""

import json
from typing import Any

import pytest

from dpr_lightning.data.conversations import to_demonstration
from dpr_lightning.data.replaced_answers import with_answer
from dpr_lightning.data.row_types import Row

USER, RIGHT, WRONG = {"role": "user", "content": "3 + 4?"}, "It is 7.", "It is 8."
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "prompt and completion": ({"prompt": "3 + 4?", "completion": RIGHT}, {"completion": WRONG}),
    "Alpaca": ({"instruction": "Add.", "input": "3 4", "output": RIGHT, "id": 7}, {"output": WRONG}),
    "an answer that is repeated": (
        {"messages": [USER, {"role": "assistant", "content": RIGHT}], "prompt": "3 + 4?", "completion": RIGHT},
        {"messages": [USER, {"role": "assistant", "content": WRONG}], "completion": WRONG},
    ),
    "an earlier turn that is learnt too": (
        {"messages": [USER, {"role": "assistant", "content": "Sure."}, USER, {"role": "assistant", "content": RIGHT}]},
        {"messages": [USER, {"role": "assistant", "content": "Sure."}, USER, {"role": "assistant", "content": WRONG}]},
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "3 + 4?"}, {"from": "gpt", "value": RIGHT}]},
        {"conversations": [{"from": "human", "value": "3 + 4?"}, {"from": "gpt", "value": WRONG}]},
    ),
    "a part of a content": (
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": RIGHT}]}]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": WRONG}]}]},
    ),
    "JSON in the cell of a table": (
        {"messages": json.dumps([USER, {"role": "assistant", "content": RIGHT}])},
        {"messages": json.dumps([USER, {"role": "assistant", "content": WRONG}])},
    ),
    "a preference": (
        {"prompt": "3 + 4?", "chosen": RIGHT, "rejected": "No."},
        {"chosen": WRONG},
    ),
    "a text with markers": (
        {"text": f"### Human: 3 + 4?\n### Assistant: {RIGHT}"},
        {"text": f"### Human: 3 + 4?\n### Assistant: {WRONG}"},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_answer_is_another_one_and_nothing_else(shape: str) -> None:
    values, changes = SHAPES[shape]
    assert with_answer(Row("f", 1, values), WRONG) == values | changes


def test_columns_of_a_file_are_followed() -> None:
    row = Row("f", 1, {"question": "3 + 4?", "answer": "7", "note": "7"})
    changed = with_answer(row, "8", {"prompt": "question", "completion": "answer"})
    assert changed is not None
    assert (changed["question"], changed["answer"]) == ("3 + 4?", "8")


@pytest.mark.parametrize(
    "values",
    [
        {"messages": [USER, {"role": "assistant", "content": "3 + 4?"}]},  # the user says the same
        {"messages": [USER, {"role": "assistant", "content": ["It is ", "7."]}]},  # of several parts
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 3}}}]},
            ]
        },
    ],
)
def test_a_row_whose_answer_is_no_text_of_its_own_is_left_alone(values: dict[str, Any]) -> None:
    row = Row("f", 1, values)
    to_demonstration(row)
    assert with_answer(row, WRONG) is None
