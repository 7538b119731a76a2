"""Messages of rows reach the chat template, or are named."""

import logging
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dpr_lightning.data import PromptSet, open_rows, to_demonstration, tokenize_example, tokenize_prompt
from dpr_lightning.data.chat_format import choose_format
from dpr_lightning.data.tokenized import tokenize_rows
from dpr_lightning.errors import InputError
from tests.data.conftest import make_tokenizer
from tests.data.template_kit import ASK, CALL, SAY, TOOLS, WITH_TOOLS, WriteRows, row, texts
from tests.data.templates import CHATML, DOCUMENTS, GLM, LLAMA, MISTRAL, QWEN3, R1


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def test_contents_are_parts_for_templates_that_take_no_other(tokenizer: PreTrainedTokenizerFast) -> None:
    """As those of SmolVLM and Idefics."""
    parts = CHATML.replace(
        "message.content }}",
        "'' }}{% for part in message.content %}{{ part.text if part.type == 'text' }}{% endfor %}{{ ''}}",
    )
    turns = [{"role": "system", "content": "Be brief."}, ASK, SAY]
    assert texts(tokenizer, parts, messages=turns) == texts(tokenizer, CHATML, messages=turns)


def test_turns_are_learnt_where_the_template_writes_a_token_after_the_last(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """As in Phi-3, which closes turns with one stop and the conversation with another."""
    closes = CHATML + "{% if not add_generation_prompt %}{{ '<|end|>' }}{% endif %}"
    turns = [ASK, SAY, ASK, {**SAY, "content": "no"}]
    learnt = [
        tokenizer.decode([token for token, acted in zip(result.tokens, result.mask, strict=True) if acted])
        for result in (
            tokenize_example(to_demonstration(row(messages=turns)), tokenizer, each) for each in (CHATML, closes)
        )
    ]
    assert learnt == ["yes<|end|>no<|end|>"] * 2


def test_roles_are_those_that_the_template_knows(tokenizer: PreTrainedTokenizerFast) -> None:
    developer = [{"role": "developer", "content": "Be brief."}, ASK, SAY]
    assert texts(tokenizer, QWEN3, messages=developer)[0].startswith("<|start|>system\nBe brief.")
    knows = CHATML + "{# 'developer' #}"
    assert texts(tokenizer, knows, messages=developer)[0].startswith("<|start|>developer\nBe brief.")
    for role in ("tool", "function", "ipython", "observation"):
        turns = [*WITH_TOOLS[:2], {"role": role, "content": "31", "name": "weather"}, SAY]
        assert "<tool_response>\n31" in texts(tokenizer, QWEN3, messages=turns)[0]
    turns = [{"role": "human", "content": "Hello?"}, {"role": "GPT", "content": "yes"}]
    assert texts(tokenizer, CHATML, messages=turns) == texts(tokenizer, CHATML, messages=[ASK, SAY])


@pytest.mark.parametrize(
    ("turn", "trained"),
    [
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"weight": 1.0}, True),
        ({"weight": None, "train": None}, True),
        ({"train": False, "weight": 0}, False),
        ({"loss": False}, False),
        ({"loss": True, "weight": 1}, True),
        ({"loss": None}, True),
    ],
)
def test_a_turn_of_weight_0_is_not_learnt(turn: dict[str, Any], trained: bool) -> None:
    example = to_demonstration(row(messages=[{**ASK, "weight": 0}, {**SAY, **turn}, {**ASK, "weight": 1}, SAY]))
    assert example.prompt_messages()[1].train is trained


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([ASK, {**SAY, "weight": 0.5}], r"float 0\.5 as `weight` at messages\[1\].*counts whole or not at all"),
        ([ASK, {**SAY, "weight": "1"}], r'str "1" as `weight`'),
        ([ASK, {**SAY, "weight": 0, "train": True}], "disagree"),
        ([ASK, {**SAY, "loss": False, "train": True}], "`train` and `loss` that disagree"),
        ([ASK, {**SAY, "reasoning": 3}], "int 3 as `reasoning`"),
        ([ASK, {**SAY, "reasoning": "a", "thinking": "b"}], "reasoning twice"),
        ([{**ASK, "reasoning": "a"}, SAY], "reasoning in the user's turn"),
        ([{**ASK, "tool_calls": [CALL]}, SAY], "`tool_calls` in the user's turn"),
        ([ASK, {**SAY, "tool_calls": 3}], "int 3 as `tool_calls`"),
        ([ASK, {**SAY, "tool_calls": [{"function": {"arguments": {}}}]}], r"at messages\[1\]\.tool_calls\[0\]"),
        ([ASK, {**SAY, "tool_calls": [{"name": "f", "arguments": 3}]}], "int 3 as arguments"),
        ([ASK, {**SAY, "tool_calls": [CALL], "function_call": CALL["function"]}], "`tool_calls` and `function_call`"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}, SAY],
            r"part of type 'image_url' .*messages\[0\], part 0",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}, SAY], "'input_audio'"),
        ([{"role": "user", "content": None}, SAY], "NoneType null as content"),
        ([], "empty list in 'messages'"),
        ([SAY], "begins with the assistant"),
        ([SAY, ASK, SAY], "begins with the assistant: messages.0. has an empty prompt.*Remove that message"),
    ],
)
def test_a_message_that_cannot_be_meant_is_named(messages: list[Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        to_demonstration(row(messages=messages))
    assert str(raised.value).startswith("f.jsonl:7 ")


def test_the_remedies_for_a_conversation_that_begins_with_the_assistant_work(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    for turns in ([ASK, SAY], [{**SAY, "train": False}, ASK, SAY], [ASK, SAY, ASK, SAY]):
        assert texts(tokenizer, CHATML, messages=turns)[1] == "yes<|end|>"


@pytest.mark.parametrize(
    ("template", "messages", "says"),
    [
        (
            MISTRAL,
            [ASK, ASK, SAY],
            "roles user, user, assistant: .*must alternate.*Messages 0 and 1 are both the user's",
        ),
        (MISTRAL, [{"role": "system", "content": "x"}, ASK, SAY], "System role not supported. Put what the system"),
        (MISTRAL, [{**SAY, "train": False}, ASK, SAY], "Its first turn, message 0, is the assistant's"),
        (MISTRAL, [ASK, {**SAY, "content": "", "tool_calls": [{**CALL, "id": "c1"}]}], "A call, .* has 'c1'"),
        (LLAMA, [ASK, {**SAY, "tool_calls": [CALL, CALL]}], "single tool-calls.*Message 1 calls 2 tools"),
    ],
)
def test_what_a_template_refuses_is_explained(
    tokenizer: PreTrainedTokenizerFast, template: str, messages: list[Any], says: str
) -> None:
    for read in (tokenize_example, tokenize_prompt):
        example = to_demonstration(row(messages=messages)) if read is tokenize_example else None
        if example is None:
            continue
        with pytest.raises(
            InputError, match=rf"f\.jsonl:7: the chat template refuses the {says}" if says[:5] == "roles" else says
        ):
            read(example, tokenizer, template)


@pytest.mark.parametrize("calls", [False, True])
def test_the_remedy_for_turns_without_an_end_works(calls: bool) -> None:
    """Tags that end a tool call are tokens of such tokenizers, and no end of turns."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", "</think>"])
    turns = [{**turn, "weight": 1} if turn["role"] == "assistant" else turn for turn in WITH_TOOLS]
    if not calls:
        turns = [ASK, SAY, ASK, {**SAY, "content": "<think>hm</think>"}]
    example = to_demonstration(row(messages=turns, tools=TOOLS))
    with pytest.raises(InputError, match=r"Put \{\{ eos_token \}\} at the end of all that") as raised:
        tokenize_example(example, tokenizer, GLM)
    assert ("after the tool calls" in str(raised.value)) == calls
    assert "end_of_turn" not in str(raised.value)
    end = "    {%- elif message.role == 'tool' %}"
    mended = GLM.replace(end, "        {{- eos_token }}\n" + end)
    result = tokenize_example(example, tokenizer, mended)
    learnt = tokenizer.decode([token for token, acted in zip(result.tokens, result.mask, strict=True) if acted])
    assert learnt.count("<|end|>") == sum(turn["role"] == "assistant" for turn in turns)
    assert ("</tool_call><|end|>" in learnt) == calls
    assert learnt.endswith("<|end|>")


def test_what_the_template_leaves_out_is_said_once_with_counts(
    tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows, caplog: pytest.LogCaptureFixture
) -> None:
    unused = {"tools": TOOLS, "documents": [{"title": "a", "text": "b"}], "chat_template_kwargs": {"mood": "calm"}}
    rows = [
        {"messages": [ASK, SAY]},
        {"messages": [{**ASK, "name": "Ann", "time": "12:00"}, SAY], **unused},
        {"messages": [{**ASK, "name": "Ann"}, SAY], **unused},
        {"messages": [ASK, {**SAY, "reasoning_content": "a", "train": False}, ASK, SAY]},
    ]
    file = write_rows(rows)
    expected = [
        "leaves out `tools` (2 rows, first {0}:2)",
        "leaves out `documents` (2 rows, first {0}:2)",
        "does not read 'mood' of `chat_template_kwargs` (2 rows, first {0}:2)",
        "leaves out the key 'name' of messages (2 rows, first {0}:2)",
        "leaves out the key 'time' of messages (1 row, first {0}:2)",
        "leaves out the reasoning of earlier turns (1 row, first {0}:4)",
    ]
    expected = [line.format(file) for line in expected]
    notes = tokenize_rows(open_rows(file), tokenizer, choose_format(tokenizer, CHATML)).report.notes
    assert [note.removeprefix("the chat template ").rstrip(".") for note in notes] == expected
    with caplog.at_level(logging.WARNING):
        PromptSet.load(file, tokenizer, chat_template=CHATML)
    assert len(caplog.records) == len(expected)
    assert all(any(line in record.message for record in caplog.records) for line in expected)
    # A template that writes them all has nothing to say.
    uses = DOCUMENTS + "{% if mood or tools or messages[0].time %}{% endif %}"
    uses = uses.replace("message.content", "message.content ~ (tools or '') ~ (message.time or '')")
    used = tokenize_rows(open_rows(file), tokenizer, choose_format(tokenizer, uses)).report.notes
    assert used == []


def test_contents_of_roles_that_a_template_does_not_know(
    tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows
) -> None:
    file = write_rows([{"messages": [{"role": "system", "content": "Be brief."}, ASK, SAY]}])
    (note,) = tokenize_rows(open_rows(file), tokenizer, choose_format(tokenizer, R1)).report.notes
    assert "the content of messages of role 'system'" in note
    # As JSON it is another text, and yet all there.
    file = write_rows([{"messages": [ASK, WITH_TOOLS[1], {"role": "tool", "content": 'a "b"'}, SAY]}])
    assert not tokenize_rows(open_rows(file), tokenizer, choose_format(tokenizer, LLAMA)).report.notes


def test_without_a_template_its_inputs_are_named(
    plain_tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_rows([{"prompt": "3+4?", "completion": "7", "tools": TOOLS}] * 2)
    notes = tokenize_rows(open_rows(file), plain_tokenizer, choose_format(plain_tokenizer)).report.notes
    assert notes == [f"there is no chat template, so `tools` is not used (2 rows, first {file}:1)."]


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (SAY, "yes"),
        ({**SAY, "reasoning_content": "It greets."}, "<think>\nIt greets.\n</think>\n\nyes"),
        (
            {"role": "assistant", "content": "", "reasoning_content": "Look.", "tool_calls": [CALL]},
            "<think>\nLook.\n</think>\n\n\n"
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
        ),
    ],
)
def test_verifiers_compare_with_the_text_that_repeats_the_demonstration(
    tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows, turn: dict[str, Any], expected: str
) -> None:
    values = {"messages": [ASK, turn]}
    answer = texts(tokenizer, QWEN3, **values)[1].removesuffix("<|end|>")
    prompts = PromptSet.load(write_rows([values]), tokenizer, chat_template=QWEN3)
    assert prompts.metadata[0]["completion"] == expected
    if turn is not SAY:  # an empty thought is the template's, and no part of the row
        assert answer == expected
