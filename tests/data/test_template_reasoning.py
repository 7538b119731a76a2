"""Reasoning reaches the chat template, or is named where the template drops it."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dpr_lightning.data import PromptSet, open_rows, to_demonstration, tokenize_example
from dpr_lightning.data.chat_format import choose_format
from dpr_lightning.data.tokenized import tokenize_rows
from dpr_lightning.errors import InputError
from tests.data.conftest import make_tokenizer
from tests.data.template_kit import ASK, CALL, SAY, WriteRows, row, texts
from tests.data.templates import CHATML, DOCUMENTS, LLAMA, QWEN3, R1


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_learnt_under_the_key_that_the_template_reads(
    tokenizer: PreTrainedTokenizerFast, key: str
) -> None:
    turns = [ASK, {**SAY, key: "It greets."}]
    assert texts(tokenizer, QWEN3, messages=turns)[1] == "<think>\nIt greets.\n</think>\n\nyes<|end|>"
    assert texts(tokenizer, DOCUMENTS, messages=turns)[1] == "(It greets.)yes<|end|>"


def test_reasoning_in_parts_of_a_content(tokenizer: PreTrainedTokenizerFast) -> None:
    parts = [{"type": "thinking", "thinking": "It greets."}, {"type": "text", "text": "yes"}]
    answer = texts(tokenizer, QWEN3, messages=[ASK, {"role": "assistant", "content": parts}])[1]
    assert answer == "<think>\nIt greets.\n</think>\n\nyes<|end|>"


@pytest.mark.parametrize("opening", ["<think>\n", "<think>"])
@pytest.mark.parametrize("key", [None, "reasoning_content"])
def test_reasoning_goes_on_where_the_prompt_opens_it(
    tokenizer: PreTrainedTokenizerFast, opening: str, key: str | None, write_rows: WriteRows
) -> None:
    """As in DeepSeek-R1 and QwQ, whose templates write no reasoning in finished turns."""
    opens = R1.replace(
        "{{- '<|start|>Assistant: ' }}{% endif %}", f"{{{{- '<|start|>Assistant: {opening}' }}}}{{% endif %}}"
    )
    assert opens != R1
    thought = f"<think>\nIt greets.\n</think>\n\n{SAY['content']}"
    turn = {**SAY, key: "It greets."} if key else {**SAY, "content": thought}
    values = {"messages": [ASK, {**turn, "train": False}, ASK, turn]}
    prompt, answer = texts(tokenizer, opens, **values)
    assert prompt.endswith(f"Hello?<|start|>Assistant: {opening}")
    assert answer.lstrip("\n") == "It greets.\n</think>\n\nyes<|end|>"
    prompts = PromptSet.load(write_rows([values]), tokenizer, chat_template=opens)
    assert prompts.metadata[0]["completion"] == answer.removesuffix("<|end|>")
    notes = tokenize_rows(open_rows(write_rows([values])), tokenizer, choose_format(tokenizer, opens)).report.notes
    assert notes == []  # what such a template cuts from earlier turns is no loss
    # The remedy for a turn without reasoning is followed.
    with pytest.raises(InputError, match="begin its content with") as raised:
        texts(tokenizer, opens, messages=[ASK, SAY])
    advice = str(raised.value).partition("begin its content with ")[2].partition(", or")[0].replace("\\n", "\n")
    answer = texts(tokenizer, opens, messages=[ASK, {**SAY, "content": advice + SAY["content"]}])[1]
    assert answer.lstrip("\n") == "</think>\n\nyes<|end|>"


def test_the_remedy_for_reasoning_after_an_empty_one_works(tokenizer: PreTrainedTokenizerFast) -> None:
    thought = {**SAY, "reasoning_content": "It greets."}
    values: dict[str, Any] = {"messages": [ASK, thought]}
    with pytest.raises(InputError, match=r"chat_template_kwargs: \{enable_thinking: true\}`, or remove the reasoning"):
        texts(tokenizer, QWEN3, **values, chat_template_kwargs={"enable_thinking": False})
    answer = texts(tokenizer, QWEN3, **values, chat_template_kwargs={"enable_thinking": True})[1]
    assert answer == "<think>\nIt greets.\n</think>\n\nyes<|end|>"


@pytest.mark.parametrize("content", ["<think>\nIt greets.\n</think>\n\nyes", "<think>It greets.</think>yes"])
def test_tags_that_a_template_sets_anew_are_no_loss(tokenizer: PreTrainedTokenizerFast, content: str) -> None:
    answer = texts(tokenizer, QWEN3, messages=[ASK, {"role": "assistant", "content": content}])[1]
    assert answer == "<think>\nIt greets.\n</think>\n\nyes<|end|>"


def test_what_the_generation_prompt_writes_is_no_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    opens = CHATML.replace("{{ '<|start|>assistant\\n' }}", "{{ '<|start|>assistant\\nSure: ' }}")
    assert opens != CHATML
    assert texts(tokenizer, opens, messages=[ASK, {**SAY, "content": "Sure: yes"}])[1] == "yes<|end|>"


@pytest.mark.parametrize(
    ("template", "turn", "part"),
    [
        (R1, {"content": "<think>\nhello\n</think>\n\nyes"}, "content"),
        (CHATML, {"content": "yes", "reasoning_content": "hello"}, "reasoning_content"),
        (CHATML, {"content": "", "reasoning_content": "hello"}, "reasoning_content"),
        (CHATML, {"content": "yes", "tool_calls": [CALL]}, r"tool_calls\[0\]"),
        (LLAMA, {"content": "I look it up.", "tool_calls": [CALL]}, "content"),
        (CHATML.replace("message.content", "message.content[:2]"), {"content": "yes sir"}, "content"),
        (CHATML.replace("message.content", "message.content | upper"), {"content": "yes"}, "content"),
        (
            QWEN3.replace("call.arguments | tojson", "'{}'"),
            {"content": "", "tool_calls": [CALL]},
            r"tool_calls\[0\]\.function\.arguments",
        ),
    ],
)
def test_a_part_that_the_template_drops_is_named(
    tokenizer: PreTrainedTokenizerFast, template: str, turn: dict[str, Any], part: str, write_rows: WriteRows
) -> None:
    turns = [ASK, {"role": "assistant", **turn}]
    with pytest.raises(InputError, match=rf"f\.jsonl:7, turn 2 \(assistant\): the chat template leaves out .* {part},"):
        tokenize_example(to_demonstration(row(messages=turns)), tokenizer, template)
    file = open_rows(write_rows([{"messages": turns}, {"messages": [ASK, SAY]}]))
    data = tokenize_rows(file, tokenizer, choose_format(tokenizer, template), on_dropped="warn")
    assert len(data) == 2
    (note,) = [note for note in data.report.notes if "that is learnt" in note]
    assert " first " in note


def test_remedies_for_dropped_reasoning_work(tokenizer: PreTrainedTokenizerFast) -> None:
    """Each is followed, and nothing of the row is lost."""
    thought = {"role": "assistant", "content": "yes", "reasoning_content": "hello"}
    with pytest.raises(InputError, match="Put the reasoning at the beginning of the content, between <think>"):
        texts(tokenizer, CHATML, messages=[ASK, thought])
    content = {"role": "assistant", "content": "<think>\nhello\n</think>\n\nyes"}
    assert texts(tokenizer, CHATML, messages=[ASK, content])[1] == "<think>\nhello\n</think>\n\nyes<|end|>"
    cuts = DOCUMENTS.replace("message.content", "message.content.split('</think>')[-1]")
    with pytest.raises(InputError, match=r"Move what stands between <think> and </think> .* `reasoning_content`"):
        texts(tokenizer, cuts, messages=[ASK, content])
    assert texts(tokenizer, cuts, messages=[ASK, thought])[1] == "(hello)yes<|end|>"
    with pytest.raises(InputError) as raised:  # neither would help: no such advice
        texts(tokenizer, R1, messages=[ASK, thought])
    assert "<think>" not in str(raised.value)
    assert "`data.chat_template`" in str(raised.value)


def test_the_remedy_for_reasoning_cut_from_earlier_turns_works(tokenizer: PreTrainedTokenizerFast) -> None:
    thought = {"role": "assistant", "content": "yes", "reasoning_content": "hello"}
    with pytest.raises(InputError, match=r'Mark the earlier turns of the assistant "train": false, or give each turn'):
        texts(tokenizer, QWEN3, messages=[ASK, thought, ASK, thought])
    answer = texts(tokenizer, QWEN3, messages=[ASK, {**thought, "train": False}, ASK, thought])[1]
    assert answer == "<think>\nhello\n</think>\n\nyes<|end|>"
    # Or a row a turn.
    assert texts(tokenizer, QWEN3, messages=[ASK, thought])[1] == answer
    assert texts(tokenizer, QWEN3, messages=[ASK, {**thought, "weight": 0}, ASK, thought])[1] == answer
