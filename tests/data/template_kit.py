"""Rows with tools, and how a chat template renders a row."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerFast

from dpr_lightning.data import to_demonstration, to_prompt, tokenize_example, tokenize_prompt
from dpr_lightning.data.rows import Row

WriteRows = Callable[..., str]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
WITH_TOOLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Is it warm in Rome?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL], "weight": 0},
    {"role": "tool", "content": "31 degrees", "tool_call_id": "call00001"},
    {"role": "assistant", "content": "Yes, 31 degrees."},
]
ASK, SAY = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "yes"}


def row(**values: Any) -> Row:
    return Row("f.jsonl", 7, values)


def texts(tokenizer: PreTrainedTokenizerFast, template: str, **values: Any) -> tuple[str, str]:
    """A demonstration's text before its last learnt turn, and the turn; the same row's prompt must be the former."""
    result = tokenize_example(to_demonstration(row(**values)), tokenizer, template)
    start = len(result.mask) - result.mask[::-1].index(False)
    prompt = tokenize_prompt(to_prompt(row(**values)), tokenizer, template)
    assert result.tokens[:start] == prompt
    return str(tokenizer.decode(result.tokens[:start])), str(tokenizer.decode(result.tokens[start:]))


def rendered(tokenizer: PreTrainedTokenizerFast, template: str, messages: list[Any], **inputs: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **inputs)).rstrip()
