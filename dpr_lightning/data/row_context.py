"""System prompts and earlier turns that rows have in columns beside the prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dpr_lightning.data.messages import describe_value, row_error
from dpr_lightning.data.row_columns import HISTORY, CanonicalRow

Turn = Mapping[str, Any]


def with_system(result: CanonicalRow, columns: Sequence[str]) -> CanonicalRow:
    """The row with its system prompt as first turn.

    Args:
        result: of a conversation, or of prompt and completion.
        columns: those that may be a system prompt; the first with a text is used.

    Raises:
        InputError: the conversation has another system turn.
    """
    values = result.row.values
    column = next((key for key in columns if isinstance(values[key], str) and values[key].strip()), None)
    turns = _turns(result.prompt if result.messages is None else result.messages)
    if column is None or turns is None:
        return result
    if _role(turns[0] if turns else None) != "system":
        turns = [{"role": "system", "content": values[column]}, *turns]
    elif turns[0].get("content") != values[column]:
        raise row_error(result.row, f"has a system turn, and another text in {column!r}", "Remove one of the two.")
    result = replace(result, columns={**result.columns, "system": (column,)})
    return replace(result, prompt=turns) if result.messages is None else replace(result, messages=turns)


def with_history(result: CanonicalRow, columns: Sequence[str]) -> CanonicalRow:
    """The row as a conversation that begins with its earlier questions and answers.

    Args:
        result: of prompt and completion.
        columns: ``history``, where the row has it: [[question, answer], …].

    Raises:
        InputError: the history has another form.
    """
    pairs = result.row.values[columns[0]] if columns else None
    turns = _turns(result.prompt)
    if not pairs or turns is None:
        return result
    if not isinstance(pairs, Sequence) or not all(
        isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2 for pair in pairs
    ):
        raise row_error(
            result.row, f"has {describe_value(pairs)} in {columns[0]!r}", "It must be a list of [question, answer]."
        )
    sides = ("user", "assistant")
    earlier = [{"role": role, "content": text} for pair in pairs for role, text in zip(sides, pair, strict=True)]
    start = 1 if _role(turns[0] if turns else None) == "system" else 0
    answer = [] if result.completion is None else [{"role": "assistant", "content": result.completion}]
    return replace(
        result,
        shape=f"{result.shape or 'prompt and completion'} after its {HISTORY}",
        columns={**result.columns, "messages": (columns[0],)},
        messages=[*turns[:start], *earlier, *turns[start:], *answer],
        prompt=None,
        completion=None,
    )


def _turns(value: Any) -> list[Any] | None:
    """A prompt as turns; None for a value that is neither a text nor a list."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return list(value) if isinstance(value, list) else None


def _role(turn: Any) -> Any:
    return turn.get("role") if isinstance(turn, Mapping) else None
