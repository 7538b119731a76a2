"""What a row says, and the message for each row that says it wrongly."""

from typing import Any

import pytest

from dpr_lightning.data.conversations import to_demonstration, to_prompt
from dpr_lightning.data.row_columns import check_columns
from dpr_lightning.data.rows import Row
from dpr_lightning.errors import InputError


def row(**values: Any) -> Row:
    return Row("f.jsonl", 7, values)


def turn(role: str, content: str = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHAT = [turn("system"), turn("user", "one"), turn("assistant", "two"), turn("user", "three"), turn("assistant", "four")]


def test_messages_learn_every_turn_of_the_assistant() -> None:
    example = to_demonstration(row(messages=CHAT))
    assert [message.train for message in example.prompt_messages()] == [False, False, True, False]
    assert [(message.content, message.train) for message in example.completion_messages()] == [("four", True)]
    assert example.prompt_text == "one\ntwo\nthree"
    assert example.metadata["completion"] == "four"


def test_train_false_leaves_a_turn_out_and_what_follows_the_last_trained_one_is_cut() -> None:
    chat = [
        turn("user", "one"),
        turn("assistant", "two", train=True),
        turn("user", "3"),
        turn("assistant", "4", train=False),
    ]
    example = to_demonstration(row(messages=chat))
    assert [message.content for message in example.prompt_messages()] == ["one"]
    assert [message.content for message in example.completion_messages()] == ["two"]
    with pytest.raises(InputError, match=r"f\.jsonl:7 has no turn to learn from"):
        to_demonstration(row(messages=[turn("user"), turn("assistant", train=False)]))


@pytest.mark.parametrize("turns", [["one", "two"], [{"content": "one"}]])
def test_a_question_of_several_turns_is_asked_its_first(turns: list[Any]) -> None:
    """As MT-Bench and Arena-Hard write them; the rest of the row is metadata."""
    example = to_prompt(row(question_id=81, category="writing", turns=turns))
    assert example.prompt == "one"
    assert example.metadata["question_id"] == 81
    assert to_prompt(row(prompt="other", turns=turns)).prompt == "other"


@pytest.mark.parametrize("turns", ["one", [], [3], [{"text": "one"}]])
def test_turns_of_another_form_are_named(turns: Any) -> None:
    with pytest.raises(InputError, match=r"f\.jsonl:7 has .* as `turns`"):
        to_prompt(row(turns=turns))


def test_the_prompt_of_a_row_is_the_demonstrations_prompt() -> None:
    assert to_prompt(row(messages=CHAT)).prompt_text == to_demonstration(row(messages=CHAT)).prompt_text
    assert len(to_prompt(row(messages=CHAT)).prompt_messages()) == 4
    assert len(to_prompt(row(messages=CHAT[:4])).prompt_messages()) == 4
    assert to_prompt(row(prompt="a", completion="b")).prompt == "a"
    assert to_prompt(row(prompt=CHAT[:2])).prompt_text == "one"


def test_only_the_completion_is_learnt_where_it_is_given_apart() -> None:
    example = to_demonstration(row(prompt=CHAT[:4], completion=[CHAT[4]]))
    assert [message.train for message in (*example.prompt_messages(), *example.completion_messages())] == [
        False
    ] * 4 + [True]


def test_columns_are_renamed_and_the_others_become_metadata() -> None:
    values = {"question": "q", "answer": "a #### 3", "level": 2, "metadata": {"source": "here"}}
    example = to_demonstration(row(**values), {"prompt": "question", "completion": "answer"})
    assert (example.prompt, example.completion) == ("q", "a #### 3")
    assert example.metadata == {"answer": "a #### 3", "level": 2, "source": "here", "completion": "a #### 3"}
    assert to_prompt(row(prompt="p", final="3"), {"answer": "final"}).metadata["answer"] == "3"
    # A column named by the caller wins over a `messages` column beside it.
    assert to_prompt(row(messages=CHAT, question="q"), {"prompt": "question"}).prompt == "q"


def test_text_parts_and_tool_calls_are_kept() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    calls = [{"function": {"name": "f", "arguments": {}}}]
    chat = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": calls},
        turn("tool"),
    ]
    example = to_demonstration(row(messages=[*chat, turn("assistant", "done")]))
    assert example.prompt_messages()[0].content == "ab"
    called = example.prompt_messages()[1]
    assert (called.content, called.tool_calls, called.train) == ("", tuple(calls), True)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"prompt": "q", "answer": "a"},
            r"has no 'completion'; its keys are 'prompt', 'answer'.*columns: \{completion: answer\}",
        ),
        ({"prompt": "q", "completon": "a"}, r"has no 'completion'.*\{completion: completon\}"),
        ({"conversations": []}, "empty list in 'conversations'"),
        ({"prompt": "q", "completion": ""}, "empty completion"),
        ({"prompt": "q", "completion": " \n"}, "empty completion"),
        ({"prompt": " ", "completion": "a"}, "empty prompt"),
        ({"prompt": "q", "completion": 3}, "int 3"),
        ({"prompt": None, "completion": "a"}, "NoneType null in 'prompt'"),
        ({"messages": "hello"}, "list of"),
        ({"messages": [turn("usr"), turn("assistant")]}, r"unknown role 'usr' at messages\[0\].*Did you mean 'user'"),
        ({"messages": [turn("user"), turn("asistant")]}, r"unknown role 'asistant' at messages\[1\].*'assistant'"),
        ({"conversations": [{"from": "humn", "value": "x"}]}, r"unknown role 'humn' at conversations\[0\]"),
        ({"messages": [turn("user"), turn("assistant", "")]}, r"empty completion at messages\[1\]"),
        ({"messages": [turn("assistant")]}, "empty prompt"),
        ({"messages": [turn("user")]}, "no turn to learn from"),
        ({"messages": [turn("user", train=True), turn("assistant")]}, "train on the user's turn"),
        ({"messages": [turn("user"), turn("assistant", train="no")]}, "true or false"),
        ({"messages": [{"role": "user", "content": 5}, turn("assistant")]}, "int 5 as content"),
        ({"messages": [turn("user"), "hi"]}, r'str "hi" at messages\[1\]'),
        ({"prompt": "q", "completion": [turn("user")]}, "does not end with"),
    ],
)
def test_a_bad_row_is_named_with_the_reason(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        to_demonstration(row(**values))
    assert str(raised.value).startswith("f.jsonl:7 ")
    assert len(str(raised.value)) < 400


def test_wrong_column_names_are_named() -> None:
    with pytest.raises(InputError, match="found 'question'"):
        check_columns({"question": "prompt"})
    with pytest.raises(InputError, match=r"has no 'questoin'.*did you mean 'question'"):
        to_prompt(row(question="q"), {"prompt": "questoin"})
