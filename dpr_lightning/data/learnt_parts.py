"""Checks that every part of a turn to learn is in the text that the chat template renders."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from dpr_lightning.data.messages import Message
from dpr_lightning.data.notices import Notices
from dpr_lightning.errors import InputError

LONGEST_OPENING = 64
"""Most characters of a content with which a generation prompt may begin the answer."""
OnDropped = Literal["error", "warn"]
_TAG = re.compile(r"(</?think(?:ing)?>)")
_THOUGHT = re.compile(r"\s*<think(?:ing)?>(.*)</think(?:ing)?>(.*)", re.DOTALL)


def check_learnt_parts(
    message: Message,
    rendered: tuple[str, str],
    where: str,
    learnt_of: Callable[[Message], str],
    on_dropped: OnDropped,
    notices: Notices,
) -> None:
    """Refuse, or count, a turn of which a part is missing in the text to learn.

    Args:
        message: the turn.
        rendered: the text before the tokens to learn, and the text of these.
        where: row and turn, for the error message.
        learnt_of: the text to learn if another message stood at this turn; raises where the template refuses it.
        on_dropped: ``error`` or ``warn``.
        notices: counts rows under ``warn``.

    Raises:
        InputError: names row, turn and part, under ``error``.
    """
    before, learnt = rendered
    part = missing_part(message, before, learnt)
    if part is None:
        return
    if on_dropped == "warn":
        notices.add(f"the chat template leaves out the {part} of a turn that is learnt", where.partition(",")[0])
        return
    remedy = _remedy(message, part, before, learnt_of)
    choose = "or set" if remedy else "Set"
    raise InputError(
        f"{where}: the chat template leaves out the turn's {part}, so the policy would not learn it; it would learn "
        f"{_excerpt(learnt)}. {remedy}{choose} `data.chat_template` to a template that writes it; or "
        "set `data.on_dropped: warn` to train without it."
    )


def missing_part(message: Message, before: str, learnt: str) -> str | None:
    """The first part of a turn that is missing in its text to learn; None where nothing is missing.

    White space around a part, or around the tags of reasoning, may differ: templates rewrite it.

    Args:
        message: the turn.
        before: the text before; a tag that opens the reasoning may stand at its end.
        learnt: the text that is learnt, with the token that ends it.
    """
    content = message.content.strip()
    text, start = _opening(before, content) + learnt, 0
    if message.reasoning is not None:
        start = _end_of(text, [message.reasoning.strip()], 0)
        if start < 0:
            return "reasoning_content"
    pieces = [piece.strip() for piece in _TAG.split(message.content)]
    if _end_of(text, [content], start) < 0 and _end_of(text, pieces, start) < 0:
        return "content"
    for index, call in enumerate(message.tool_calls):
        function = call["function"]
        if function["name"] not in text:
            return f"tool_calls[{index}]"
        arguments = _parsed(function["arguments"])
        if any(not any(form in text for form in forms) for forms in _leaves(arguments)):
            return f"tool_calls[{index}].function.arguments"
    return None


def _opening(before: str, content: str) -> str:
    """The part of the answer that the generation prompt writes: the tag of its reasoning, or how its content starts."""
    tag = re.search(r"<think(?:ing)?>\s*$", before)
    if tag is not None:
        return tag.group()
    longest = min(LONGEST_OPENING, len(content) - 1)
    return next((content[:length] for length in range(longest, 0, -1) if before.endswith(content[:length])), "")


def _end_of(text: str, pieces: Sequence[str], start: int) -> int:
    """End of the last piece, where all pieces occur in the text in this order; -1 where one is missing."""
    for piece in pieces:
        index = text.find(piece, start)
        if index < 0:
            return -1
        start = index + len(piece)
    return start


def _leaves(value: Any) -> Iterator[tuple[str, ...]]:
    """The forms in which a template may write each key and value of a call's arguments."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(str(key))
            yield from _leaves(inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value.strip(), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]
    else:
        yield json.dumps(value, default=str), str(value)


def _parsed(arguments: Any) -> Any:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def _remedy(message: Message, part: str, before: str, learnt_of: Callable[[Message], str]) -> str:
    """A way to write the turn of which this template keeps every part, tested on it; empty where there is none."""
    thought = _THOUGHT.fullmatch(message.content)
    if part == "reasoning_content" and message.reasoning is not None:
        content = f"<think>\n{message.reasoning}\n</think>\n\n{message.content}"
        other = replace(message, reasoning=None, content=content)
        words = "Put the reasoning at the beginning of the content, between <think> and </think>;"
    elif part == "content" and thought is not None and message.reasoning is None:
        other = replace(message, reasoning=thought.group(1).strip(), content=thought.group(2).strip())
        words = "Move what stands between <think> and </think> from the content into `reasoning_content`;"
    else:
        return ""
    try:
        learnt = learnt_of(other)
    except InputError:
        return ""
    return f"{words} " if missing_part(other, before, learnt) is None else ""


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:40]} … {text[-18:]}")
