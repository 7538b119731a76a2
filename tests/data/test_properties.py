"""Whatever a file holds, reading gives rows or an InputError; whatever a conversation says, what is said is masked."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dpr_lightning.data.conversations import Example, to_demonstration, to_prompt
from dpr_lightning.data.rows import Row, open_rows
from dpr_lightning.data.tokenization import tokenize_example, tokenize_prompt
from dpr_lightning.errors import InputError
from tests.data.conftest import TEMPLATE, make_tokenizer
from tests.tiny import tiny_tokenizer

LINE = json.dumps({"prompt": "1 + 1 = \u00fc", "completion": "Answer: 2", "id": 7}).encode()
SEVERAL = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
KEYS = st.sampled_from(["prompt", "completion", "messages", "role", "content", "train", "turns", "answer", "metadata"])
VALUES = st.recursive(
    SCALARS | st.sampled_from(["user", "assistant", "system"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.text("abcdefgh 0123456789", min_size=1, max_size=20).filter(lambda text: text.strip() == text)


def _read(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        rows = list(open_rows(path))
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right, and this is what one must say
    else:
        assert all(isinstance(row.values, dict) for row in rows)
        json.dumps([row.values for row in rows], ensure_ascii=False).encode()


@SEVERAL
@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbf")
@example(b'{"a": "\\ud800"}')
@example(b"[" * 5000)
@example(b'{"a": ' + b"9" * 5000 + b"}")
@example(b"\x1f\x8b\x08")
def test_any_bytes_are_rows_or_an_error(tmp_path: Path, content: bytes) -> None:
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        _read(tmp_path / name, content)


@SEVERAL
@given(st.lists(st.tuples(st.integers(0, 3 * len(LINE)), st.binary(max_size=3)), max_size=4))
def test_a_damaged_file_is_rows_or_an_error(tmp_path: Path, damage: Sequence[tuple[int, bytes]]) -> None:
    content = b"\n".join([LINE] * 3)
    for index, other in damage:
        content = content[:index] + other + content[index + len(other) + 1 :]
    _read(tmp_path / "rows.jsonl", content)


@SEVERAL
@given(st.dictionaries(KEYS | st.text(max_size=6), VALUES, max_size=5))
@example({"prompt": "1", "completion": {"role": "assistant"}})
@example({"messages": [{"role": "assistant", "content": [{"type": "text", "text": None}]}]})
def test_any_row_is_an_example_or_an_error(values: dict[str, Any]) -> None:
    for read in (to_demonstration, to_prompt):
        try:
            assert isinstance(read(Row("rows.jsonl", 3, values)), Example)
        except InputError as error:
            assert "rows.jsonl:3" in str(error)  # noqa: PT017


@SEVERAL
@given(WORDS, WORDS)
def test_plain_text_is_masked_where_it_is_said(prompt: str, completion: str) -> None:
    tokenizer = tiny_tokenizer()
    row = Row("rows.jsonl", 1, {"prompt": prompt, "completion": completion})
    result = tokenize_example(to_demonstration(row), tokenizer)
    learnt = [token for token, acted in zip(result.tokens, result.mask, strict=True) if acted]
    assert tokenizer.decode(learnt[:-1]) == completion
    assert learnt[-1] == tokenizer.eos_token_id
    # What is asked later is what stood before the answer.
    assert result.tokens[: len(result.tokens) - len(learnt)] == tokenize_prompt(to_prompt(row), tokenizer)


@pytest.fixture(scope="module")
def chat() -> Any:
    return make_tokenizer(TEMPLATE)


@SEVERAL
@given(st.lists(st.tuples(WORDS, WORDS, st.booleans()), min_size=1, max_size=4), st.booleans())
def test_of_a_conversation_the_trained_turns_are_masked(
    chat: Any, turns: list[tuple[str, str, bool]], system: bool
) -> None:
    turns[-1] = (*turns[-1][:2], True)
    messages: list[dict[str, Any]] = [{"role": "system", "content": "be kind"}] if system else []
    for user, answered, train in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answered, "train": train}]
    result = tokenize_example(to_demonstration(Row("rows.jsonl", 1, {"messages": messages})), chat)
    learnt: list[list[int]] = []
    for index, acted in enumerate(result.mask):
        if acted and not result.mask[index - 1]:
            learnt.append([])
        if acted:
            learnt[-1].append(result.tokens[index])
    assert [chat.decode(tokens[:-1]).strip() for tokens in learnt] == [text for _, text, train in turns if train]
    assert all(tokens[-1] == chat.eos_token_id for tokens in learnt)
