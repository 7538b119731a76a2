"""One message of a conversation: its role, its content, and what else a chat template may read of it."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpr_lightning.data.rows import Row
from dpr_lightning.errors import InputError

ROLES = ("system", "developer", "user", "assistant", "tool", "ipython")
ROLE_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
"""Names of the roles in other data sets."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys for the reasoning of a turn in data sets and templates."""
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text"}
REASONING_PARTS = {"thinking": "thinking", "reasoning": "text"}
"""Types of content parts, and the key of their text."""
READ = ("role", "content", "train", "loss", "weight", "tool_calls", "function_call", *REASONING)
"""Keys of a message that become attributes of :class:`Message`; the others are passed to the chat template."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: one of ``ROLES``.
        content: its text; empty where the message has tool calls alone.
        train: whether the policy is trained on it.
        reasoning: the assistant's reasoning before the answer, where it is not part of the content.
        tool_calls: in OpenAI's form, ``{"type": "function", "function": {"name": …, "arguments": …}}``.
        fields: every other key of the message, for the chat template.
    """

    role: str
    content: str
    train: bool = False
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The message as one text: its content, and its tool calls as JSON."""
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in self.tool_calls]
        return "\n".join(part for part in (self.content, *calls) if part) if calls else self.content


def read_messages(row: Row, value: Any, column: str, *, learn: bool, text: bool = False) -> tuple[Message, ...]:
    """The messages of a row.

    Args:
        row: for error messages.
        value: of ``column`` in the row.
        column: name of the column.
        learn: train on turns of the assistant that do not have ``"train": false``.
        text: whether the column may also be a text, for the error message.

    Raises:
        InputError: names the row, the message and what is wrong with it.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        either = "a string or " if text else ""
        raise row_error(
            row,
            f"has {describe_value(value)} in {column!r}",
            f"It must be {either}a list of {{role, content}} objects.",
        )
    if not value and not text:
        raise row_error(
            row, f"has an empty list in {column!r}", "A conversation needs a turn of the user, or a system's."
        )
    return tuple(_read_message(row, turn, f"{column}[{index}]", learn) for index, turn in enumerate(value))


def known_role(name: Any) -> str | None:
    """The role with this name or alias, in upper or lower case; None for an unknown one."""
    lowered = str(name).lower()
    return lowered if lowered in ROLES else ROLE_ALIASES.get(lowered)


def without_nulls(value: Any) -> Any:
    """``value`` without the null keys of its objects: Arrow gives every struct of a column the keys of all others."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [without_nulls(inner) for inner in value]
    return value


def row_error(row: Row, what: str, remedy: str) -> InputError:
    """An InputError that begins with ``file:number``: the problem, then the remedy."""
    return InputError(f"{row.location} {what}. {remedy}".rstrip())


def describe_value(value: Any) -> str:
    """Type and beginning of a value, for error messages."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"{type(value).__name__} {text[:50]}{'…' if len(text) > 50 else ''}"


def parse_json(row: Row, text: str, where: str) -> Any:
    """The value of a JSON text in a row, where a list or an object is expected; None for an empty text.

    Raises:
        InputError: it is no JSON.
    """
    try:
        return json.loads(text) if text.strip() else None
    except ValueError as error:
        raise row_error(
            row, f"has a text at {where} that is no JSON ({error})", "Write a list, or JSON of one."
        ) from error


def _read_message(row: Row, value: Any, where: str, learn: bool) -> Message:
    if not isinstance(value, Mapping):
        raise row_error(
            row, f"has {describe_value(value)} at {where}", "A message is an object with `role` and `content`."
        )
    role = _role(row, value, where)
    tool_calls = _tool_calls(row, value, where)
    if tool_calls and role != "assistant":
        raise row_error(row, f"has `tool_calls` in the {role}'s turn at {where}", "Only the assistant calls tools.")
    content, thought = _content(row, value.get("content"), where, optional=bool(tool_calls))
    reasoning = _reasoning(row, value, where) or thought
    if reasoning and role != "assistant":
        raise row_error(row, f"has reasoning in the {role}'s turn at {where}", "Only the assistant's turns have any.")
    train = _train(row, value, role, where)
    train = learn and role == "assistant" and train is not False
    if train and not content.strip() and not tool_calls and not reasoning:
        raise row_error(row, f"has an empty completion at {where}", 'Remove the row, or set "train": false there.')
    fields = {name: part for name, part in value.items() if name not in READ and part is not None}
    return Message(role, content, train, reasoning, tool_calls, fields)


def _role(row: Row, value: Mapping[str, Any], where: str) -> str:
    if "role" not in value:
        keys = ", ".join(map(repr, value)) or "nothing"
        raise row_error(row, f"has a message without `role` at {where}; its keys are {keys}", "")
    role = known_role(value["role"])
    if role is None:
        matches = difflib.get_close_matches(str(value["role"]).lower(), ROLES, n=1)
        meant = f" Did you mean {matches[0]!r}?" if matches else ""
        raise row_error(
            row, f"has the unknown role {value['role']!r} at {where}", f"Roles are {', '.join(ROLES)}.{meant}"
        )
    return role


def _train(row: Row, value: Mapping[str, Any], role: str, where: str) -> bool | None:
    """``train`` of a message, or ``weight`` or ``loss`` (0 or 1) of other programs; None where it has none of them."""
    train = value.get("train")
    if train is not None and not isinstance(train, bool):
        raise row_error(row, f"has {describe_value(train)} as `train` at {where}", "It must be true or false.")
    for name in ("weight", "loss"):
        weight = value.get(name)
        if weight is None:
            continue
        if not isinstance(weight, int | float) or weight not in (0, 1):
            raise row_error(
                row,
                f"has {describe_value(weight)} as `{name}` at {where}",
                "A turn counts whole or not at all: 1 trains on it, 0 does not. To count rows more often, repeat them.",
            )
        if train is not None and train != bool(weight):
            raise row_error(row, f"has `train` and `{name}` that disagree at {where}", "Remove one of them.")
        # Data sets with a weight on every message mean the assistant's alone.
        train = bool(weight) if role == "assistant" else None
    if train and role != "assistant":
        raise row_error(row, f"asks to train on the {role}'s turn at {where}", "Only the assistant's turns are learnt.")
    return train


def _content(row: Row, value: Any, where: str, *, optional: bool) -> tuple[str, str | None]:
    """The text of a message's content, and the reasoning in its parts."""
    if isinstance(value, str):
        return value, None
    if value is None and optional:
        return "", None
    remedy = "It must be a string, or a list of text parts."
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise row_error(row, f"has {describe_value(value)} as content at {where}", remedy)
    texts: list[str] = []
    thoughts: list[str] = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind in TEXT_PARTS and isinstance(part.get(TEXT_PARTS[kind]), str):
            texts.append(part[TEXT_PARTS[kind]])
        elif kind in REASONING_PARTS and isinstance(part.get(REASONING_PARTS[kind]), str):
            thoughts.append(part[REASONING_PARTS[kind]])
        elif isinstance(kind, str):
            raise row_error(
                row,
                f"has a part of type {kind!r} in the content at {where}, part {index}",
                "Policies here read and write text alone: leave such rows out, or put what the part says into words.",
            )
        else:
            raise row_error(row, f"has {describe_value(part)} in the content at {where}, part {index}", remedy)
    return "".join(texts), "".join(thoughts) or None


def _reasoning(row: Row, value: Mapping[str, Any], where: str) -> str | None:
    present = {name: value[name] for name in REASONING if value.get(name) not in (None, "")}
    for name, text in present.items():
        if not isinstance(text, str):
            raise row_error(row, f"has {describe_value(text)} as `{name}` at {where}", "It must be a string.")
    if len(set(present.values())) > 1:
        raise row_error(
            row, f"has reasoning twice, as {' and '.join(map(repr, present))}, at {where}", "Leave one of them."
        )
    return next(iter(present.values()), None)


def _tool_calls(row: Row, value: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    """The tool calls of a message; OpenAI's older ``function_call`` is one of them."""
    calls, legacy = value.get("tool_calls"), value.get("function_call")
    if isinstance(calls, str):
        calls = parse_json(row, calls, f"{where}.tool_calls")
    if calls and legacy:
        raise row_error(row, f"has `tool_calls` and `function_call` at {where}", "Leave one of them.")
    if legacy:
        calls = [legacy]
    if not calls:
        return ()
    if not isinstance(calls, Sequence):
        raise row_error(row, f"has {describe_value(calls)} as `tool_calls` at {where}", "It must be a list of calls.")
    return tuple(_tool_call(row, call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls))


def _tool_call(row: Row, value: Any, where: str) -> Mapping[str, Any]:
    call = without_nulls(value) if isinstance(value, Mapping) else {}
    if "function" not in call:
        outer = {name: part for name, part in call.items() if name in ("id", "type", "index")}
        inner = {name: part for name, part in call.items() if name not in outer}
        call = {"type": "function", **outer, "function": inner}
    function = call["function"]
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise row_error(
            row,
            f"has {describe_value(value)} at {where}",
            'A call is {"type": "function", "function": {"name": …, "arguments": …}}.',
        )
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str | Mapping):
        raise row_error(
            row, f"has {describe_value(arguments)} as arguments at {where}", "They must be an object, or JSON of one."
        )
    return {**call, "function": {**function, "arguments": arguments}}
