"""Rows with two responses to one prompt, one chosen and one rejected, as tokens."""

from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dpr_lightning.data.chat_turns import has_roles, parsed_turns, standard, text_of
from dpr_lightning.data.loss_spans import LOSS_SPANS
from dpr_lightning.data.messages import describe_value, row_error
from dpr_lightning.data.row_columns import CHOSEN, MESSAGES, PROMPTS
from dpr_lightning.data.row_types import Row, RowSource, first_rows, row_key
from dpr_lightning.data.tokenized import TokenizedDataset
from dpr_lightning.errors import InputError, counted

REJECTED = "rejected"
RESPONSES = (CHOSEN, REJECTED)
OnEqual = Literal["error", "drop"]
SCORES = {part: (f"{part}_reward", f"{part}_score", f"score_{part}", f"{part}-rating") for part in RESPONSES}
"""Columns with the number that a judge gave each response; the first of them that a row has is read."""


class ResponseRows:
    """The rows of a source of pairs, each with one of its two responses alone, in the form of a demonstration.

    Args:
        source: rows with ``chosen`` and ``rejected``, and with ``prompt``, with ``messages`` before the response, or
            with whole conversations as responses.
        part: the response that the rows have: ``chosen`` or ``rejected``.
    """

    def __init__(self, source: RowSource, part: str) -> None:
        self.source, self.part = source, part
        self.name, self.files = source.name, source.files
        self.notes = source.notes if part == CHOSEN else ()

    def __iter__(self) -> Iterator[Row]:
        """The rows in order.

        Raises:
            InputError: a row lacks a response, or has an empty one.
        """
        for row in self.source:
            yield _with_response(row, self.part)

    def fingerprint(self) -> str:
        """That of the source, with the part."""
        return f"{self.source.fingerprint()}:{self.part}"

    def count(self) -> int:
        """About how many rows there are."""
        return self.source.count()


class PairedDataset(TokenizedDataset):
    """The chosen responses to some prompts, and the rejected ones in the same order.

    Args:
        chosen: a demonstration a pair.
        rejected: [N], of the same rows.
        reward_gap: [N] reward of the chosen response less that of the rejected one; None: not read.
    """

    def __init__(
        self, chosen: TokenizedDataset, rejected: TokenizedDataset, reward_gap: NDArray[np.float32] | None = None
    ) -> None:
        super().__init__(chosen.arrays, chosen.file, chosen.report, chosen.index, chosen.files)
        self.rejected, self.reward_gap = rejected, reward_gap

    def select(self, indices: NDArray[np.int64]) -> "PairedDataset":
        """Some of the pairs; the tokens are shared, not copied."""
        gap = None if self.reward_gap is None else self.reward_gap[indices]
        return PairedDataset(super().select(indices), self.rejected.select(indices), gap)


def pair_up(source: RowSource, tokenize: Callable[[RowSource], TokenizedDataset], on_equal: OnEqual) -> PairedDataset:
    """Called once for each source of pairs: tokenise both responses of its rows, and check them against each other.

    Args:
        source: of the pairs.
        tokenize: what tokenises the rows of one response; it may leave out rows that are too long.
        on_equal: ``error`` refuses rows whose responses are the same tokens, ``drop`` leaves them out.

    Raises:
        InputError: names the rows whose responses are equal or respond to different prompts, or none is left.
    """
    if on_equal not in get_args(OnEqual):
        raise InputError(f"`data.on_equal` is {on_equal!r}: choose {' or '.join(get_args(OnEqual))}.")
    chosen, rejected = (tokenize(ResponseRows(source, part)) for part in RESPONSES)
    # A row that counts several times by its weight occurs as often in both, in the same order.
    left, right = _shared_rows(chosen.numbers, rejected.numbers)
    chosen, rejected = chosen.select(left), rejected.select(right)
    equal: list[int] = []
    for index in range(len(chosen)):
        preferred, other = chosen.example(index), rejected.example(index)
        starts = _last_turn_start(preferred.mask), _last_turn_start(other.mask)
        if preferred.tokens[: starts[0]] != other.tokens[: starts[1]]:
            raise InputError(
                f"{chosen.where(index)}: the chosen and the rejected response follow different prompts or earlier "
                "turns. A pair needs two responses to one prompt: correct the row, or remove it."
            )
        if preferred.tokens == other.tokens:
            equal.append(index)
    if equal and on_equal == "error":
        raise InputError(_equal_message(chosen, equal))
    if len(equal) == len(chosen):
        raise InputError(
            f"No pair of {source.name} is left: {_count_of(chosen, equal)} have equal responses, and the others have "
            "one that is longer than `data.max_length`."
        )
    if equal:
        listed = _count_of(chosen, equal)
        chosen.report.notes.append(f"{listed} have the same chosen and rejected response; they are left out")
    remaining = np.setdiff1d(np.arange(len(chosen)), equal).astype(np.int64)
    return PairedDataset(chosen.select(remaining), rejected.select(remaining))


def read_reward_gaps(source: RowSource, keys: NDArray[np.int64], limit: int | None) -> NDArray[np.float32]:
    """Called where a loss reads rewards of pairs: that of the chosen response less that of the rejected one, [N].

    Args:
        source: of the pairs, with a number for each response, such as ``chosen_reward`` and ``rejected_reward``.
        keys: [N] of the rows to return.
        limit: rows that are read.

    Raises:
        InputError: a row lacks one of the two numbers, or has one that is not finite.
    """
    files = {file: index for index, file in enumerate(source.files)}
    gaps = {
        row_key(files[row.file], row.number): _reward(row, CHOSEN) - _reward(row, REJECTED)
        for row in first_rows(source, limit)
    }
    return np.array([gaps[key] for key in keys.tolist()], dtype=np.float32)


def _reward(row: Row, part: str) -> float:
    column = next((name for name in SCORES[part] if row.values.get(name) is not None), None)
    if column is None:
        raise row_error(
            row,
            f"has no reward of its {part} response",
            f"The loss `rebel` learns differences of rewards: give every row `{SCORES[CHOSEN][0]}` and "
            f"`{SCORES[REJECTED][0]}`, or choose another `model.loss`.",
        )
    value = row.values[column]
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise row_error(row, f"has {describe_value(value)} in {column!r}", "A reward is a finite number.")
    return float(value)


def _with_response(row: Row, part: str) -> Row:
    """The row as a demonstration of one of its responses.

    Raises:
        InputError: it lacks a response, or has an empty one.
    """
    columns = {name: _response_column(row, name) for name in RESPONSES}
    responses = {name: standard(parsed_turns(row.values[column])) for name, column in columns.items()}
    for name, response in responses.items():
        if _is_empty(response):
            raise row_error(row, f"has an empty {name!r} response", "Write one, or remove the row.")
    if row.values.get(LOSS_SPANS):
        raise row_error(row, f"has {LOSS_SPANS!r}", "Whole responses are compared: remove the spans, or the row.")
    scores = {name for names in SCORES.values() for name in names}
    rest = {key: value for key, value in row.values.items() if key not in (*columns.values(), *scores)}
    response = responses[part]
    before = next((key for key in rest if key.lower() in MESSAGES), None)
    is_whole = has_roles(response) and response[0].get("role") != "assistant"
    if before is not None:
        turns = rest.pop(before)  # of data sets that repeat the chosen conversation there, too
        if not is_whole and not any(key.lower() in PROMPTS for key in rest):
            rest["prompt"] = turns
    return row._replace(values={**rest, CHOSEN: response})


def _is_empty(response: Any) -> bool:
    """Whether a response, a text or turns, has neither a text nor a tool call at its end."""
    if has_roles(response):
        return not response[-1].get("tool_calls") and not text_of(response[-1].get("content") or "").strip()
    return isinstance(response, str | Sequence) and not text_of(response).strip()


def _response_column(row: Row, name: str) -> str:
    """The row's column of a response.

    Raises:
        InputError: it has none.
    """
    column = next((key for key in row.values if key.lower() == name and row.values[key] is not None), None)
    if column is None:
        hint = "Each row needs a `chosen` and a `rejected` response to one prompt."
        if "label" in row.values:
            hint += " A `label` for each response alone makes no pairs."
        raise row_error(row, f"has no {name!r} response; its keys are {', '.join(map(repr, row.values))}", hint)
    return column


def _shared_rows(left: NDArray[np.int64], right: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the rows that are in both lists of keys, in order."""
    shared = np.intersect1d(left, right)
    return tuple(np.flatnonzero(np.isin(keys, shared)).astype(np.int64) for keys in (left, right))  # type: ignore[return-value]


def _last_turn_start(mask: Sequence[bool]) -> int:
    """Index of the first token of the last unbroken run of a mask that ends with True."""
    reversed_mask = mask[::-1]
    return len(mask) - (reversed_mask.index(False) if False in reversed_mask else len(mask))


def _count_of(data: TokenizedDataset, indices: Sequence[int]) -> str:
    return f"{len(indices):,} of {counted(len(data), 'row')}"


def _equal_message(data: TokenizedDataset, equal: Sequence[int]) -> str:
    named = ", ".join(data.where(index) for index in equal[:3]) + (" …" if len(equal) > 3 else "")
    cut = " once they are cut at `data.max_length`" if data.report.truncated else ""
    return (
        f"{_count_of(data, equal)} of pairs have the same chosen and rejected response{cut}, so that nothing is "
        f"preferred: {named}. Remove them, or set `data.on_equal: drop`."
    )
