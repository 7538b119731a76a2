"""Weights of parts of an answer: the column ``loss_spans``, from characters of a text to tokens and back."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.messages import describe_value, parse_json, row_error
from dpr_lightning.data.row_types import Row
from dpr_lightning.errors import InputError
from dpr_lightning.rollouts import decode_tokens

LOSS_SPANS = "loss_spans"
"""Column of parts of a completion that are learnt with other weights than 1."""
KEYS = {"start", "end", "text", "weight", "turn"}
EXPECTED = f'{LOSS_SPANS} is a list of {{"start": 0, "end": 4, "weight": 0}}, in characters of the completion.'


@dataclass(frozen=True, slots=True)
class LossSpan:
    """A part of a turn that is learnt with another weight than 1.

    Args:
        start: first character, counted in the turn's content.
        end: the character after the last one.
        weight: of the loss of its tokens; 0: they are not learnt.
        turn: index among the turns that are learnt; −1: the last.
        text: what the content has there; None: not checked.
    """

    start: int
    end: int
    weight: float = 0.0
    turn: int = -1
    text: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The entry of the column."""
        entry: dict[str, Any] = {"start": self.start, "end": self.end, "weight": self.weight}
        if self.text is not None:
            entry["text"] = self.text
        if self.turn != -1:
            entry["turn"] = self.turn
        return entry


def read_loss_spans(row: Row, column: str) -> tuple[LossSpan, ...]:
    """The spans of a row; empty where it has none.

    Args:
        row: of a file.
        column: the file's name of the column.

    Raises:
        InputError: names the row and what is wrong with an entry.
    """
    value = row.values.get(column)
    if isinstance(value, str):
        value = parse_json(row, value, repr(column))
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise row_error(row, f"has {describe_value(value)} in {column!r}", EXPECTED)
    return tuple(_read_span(row, entry, f"{column}[{index}]") for index, entry in enumerate(value))


def _read_span(row: Row, entry: Any, where: str) -> LossSpan:
    if not isinstance(entry, Mapping):
        raise row_error(row, f"has {describe_value(entry)} at {where}", EXPECTED)
    entry = {key: value for key, value in entry.items() if value is not None}
    unknown = sorted(set(entry) - KEYS)
    if unknown:
        raise row_error(row, f"has the unknown key {unknown[0]!r} at {where}", f"Keys are {', '.join(sorted(KEYS))}.")
    for key in ("start", "end"):
        if not _is_integer(entry.get(key)):
            raise row_error(row, f"has {describe_value(entry.get(key))} as {where}.{key}", EXPECTED)
    start, end, weight, turn = entry["start"], entry["end"], entry.get("weight", 0.0), entry.get("turn", -1)
    if not 0 <= start < end:
        raise row_error(row, f"has characters {start} to {end} at {where}", "A span needs 0 ≤ start < end.")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise row_error(
            row,
            f"has {describe_value(weight)} as {where}.weight",
            "A weight is a number from 0 (not learnt) up; 1 changes nothing.",
        )
    if not _is_integer(turn) or turn < -1:
        raise row_error(
            row, f"has {describe_value(turn)} as {where}.turn", "It counts the turns that are learnt, from 0."
        )
    text = entry.get("text")
    if text is not None and not isinstance(text, str):
        raise row_error(row, f"has {describe_value(text)} as {where}.text", "It is the content from start to end.")
    return LossSpan(start, end, float(weight), turn, text)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def spans_by_turn(spans: Sequence[LossSpan], contents: Sequence[str], where: str) -> list[list[LossSpan]]:
    """Spans sorted by the turn that they are in, and checked against its content.

    Args:
        spans: of a row.
        contents: of the turns that are learnt.
        where: ``file:number`` of the row, for messages.

    Raises:
        InputError: a span is outside its turn or the conversation, or its text is not there.
    """
    result: list[list[LossSpan]] = [[] for _ in contents]
    for span in spans:
        if span.turn >= len(contents):
            raise InputError(
                f"{where}: {LOSS_SPANS} names turn {span.turn}, and {len(contents)} "
                f"{'turn is' if len(contents) == 1 else 'turns are'} learnt. Turns are counted from 0."
            )
        content = contents[span.turn]
        if span.end > len(content):
            raise InputError(
                f"{where}: {LOSS_SPANS} names characters {span.start} to {span.end}, and the turn has "
                f"{len(content)}. Count in the content of the turn, without what a chat template adds."
            )
        actual = content[span.start : span.end]
        if span.text is not None and span.text != actual:
            raise InputError(
                f"{where}: {LOSS_SPANS} names {span.text!r} at characters {span.start} to {span.end}, where the turn "
                f"has {actual!r}: it has changed since the span was written. Remove the span, or write it again."
            )
        result[span.turn].append(span)
    return result


def token_weights(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], content: str, spans: Sequence[LossSpan], where: str
) -> list[float]:
    """The weight of each token of a turn: the lowest of the spans that it overlaps, else 1.

    Args:
        tokenizer: of the policy.
        tokens: of the turn, as they are learnt.
        content: of the turn in its row.
        spans: in this turn.
        where: ``file:number`` of the row, for messages.

    Raises:
        InputError: the tokens do not decode to the content, so that characters cannot be located.
    """
    lowest: dict[int, float] = {}
    first = content_start(tokenizer, tokens, content)
    if first is None:
        raise InputError(
            f"{where}: {LOSS_SPANS} cannot be located, for the tokens of the turn decode to another text than its "
            f"content ({decode_tokens(tokenizer, tokens)[:40]!r} instead of {content[:40]!r}). Remove {LOSS_SPANS} "
            "from this row, or write the content as the chat template and the tokenizer write it."
        )
    for span in spans:
        start = _first_token(tokenizer, tokens, first + span.start)
        end = _tokens_of(tokenizer, tokens, first + span.end)
        for index in range(start, end):
            lowest[index] = min(lowest.get(index, math.inf), span.weight)
    return [lowest.get(index, 1.0) for index in range(len(tokens))]


def token_span(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], first: int, content: str, start: int, end: int
) -> tuple[int, int] | None:
    """Characters of a turn's content that some of its tokens cover; None where they are outside it.

    White space at both ends is left out: it belongs to the token of a word, not to what is wrong with the word.

    Args:
        tokenizer: of the policy.
        tokens: of the turn.
        first: from :func:`content_start`.
        content: of the turn in its row.
        start: index of the first token.
        end: the index after the last one.
    """
    left = max(_characters(tokenizer, tokens, start) - first, 0)
    # The last of the tokens may be a part of a character, of which the whole is meant.
    right = min(max(_characters(tokenizer, tokens, end) - first, left + 1), len(content))
    while left < right and content[left].isspace():
        left += 1
    while left < right and content[right - 1].isspace():
        right -= 1
    return (left, right) if left < right else None


def content_start(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], content: str) -> int | None:
    """Index of the content's first character in the text of a turn's tokens; negative where its start was cut off.

    None where the text does not have the content, since a tokenizer or template changes it.
    """
    text = decode_tokens(tokenizer, tokens)
    for candidate in (content, content.strip()):
        index = text.find(candidate)
        if index >= 0:
            return index - content.index(candidate)
    return None


def runs(mask: Sequence[bool]) -> list[tuple[int, int]]:
    """Start and end of each run of True."""
    grouped = (list(group) for value, group in groupby(range(len(mask)), key=lambda index: mask[index]) if value)
    return [(indices[0], indices[-1] + 1) for indices in grouped]


def _first_token(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], character: int) -> int:
    """Index of the first token that has a part of a character of the text."""
    count = _tokens_of(tokenizer, tokens, character)
    return count - 1 if _characters(tokenizer, tokens, count) > character else count


def _tokens_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], characters: int) -> int:
    """How many tokens the first characters of the text take, by bisection over prefixes."""
    return bisect_left(range(len(tokens)), characters, key=lambda count: _characters(tokenizer, tokens, count))


def _characters(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], count: int) -> int:
    """Characters of the first tokens; one that a token leaves incomplete is not counted."""
    return len(decode_tokens(tokenizer, tokens[:count]).rstrip("\N{REPLACEMENT CHARACTER}"))
