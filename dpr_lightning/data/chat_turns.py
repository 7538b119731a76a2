"""Turns of a conversation as other formats write them, brought into the form {role, content}."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dpr_lightning.data.messages import known_role

ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")
CALLS = ("function_call", "tool_call")
"""Turns of these roles are calls of tools by the assistant, as JSON."""


def standard(value: Any) -> Any:
    """Turns in the form {role, content}; anything else is returned unchanged.

    Args:
        value: a text, or a list of objects with ``role`` (``from``, ``speaker``) and ``content`` (``value``, ``text``).
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_turn(turn) for turn in value]
    return value


def form_of(turns: Any) -> str:
    """The keys of the first turn, such as ``from/value``; empty for {role, content} and for what is no turn."""
    first = turns[0] if isinstance(turns, Sequence) and not isinstance(turns, str) and turns else None
    if not isinstance(first, Mapping):
        return ""
    keys = (_first(first, ROLE_KEYS), _first(first, CONTENT_KEYS))
    return "" if None in keys or keys == ("role", "content") else "/".join(map(str, keys))


def has_roles(turns: Any) -> bool:
    """Whether ``turns`` is a list of objects with a role."""
    first = turns[0] if isinstance(turns, Sequence) and not isinstance(turns, str) and turns else None
    return isinstance(first, Mapping) and _first(first, ROLE_KEYS) is not None


def parsed_turns(value: Any) -> Any:
    """A list of turns from the JSON text of a table's cell; any other value is returned unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def text_of(value: Any) -> str:
    """All texts in a structure, one a line."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "\n".join(text_of(part) for part in value.values())
    return "\n".join(text_of(part) for part in value) if isinstance(value, Sequence) else ""


def repeats(value: Any, texts: str) -> bool:
    """Whether every line of the texts in ``value`` occurs in ``texts``."""
    return all(line.strip() in texts for line in text_of(value).splitlines())


def _first(turn: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if turn.get(key) is not None), None)


def _turn(turn: Any) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    role_key, content_key = _first(turn, ROLE_KEYS), _first(turn, CONTENT_KEYS)
    role = None if role_key is None else turn[role_key]
    if not isinstance(role, str):
        return turn
    renamed = {role_key, content_key} - {"role", "content"}
    fields = {key: value for key, value in turn.items() if key not in renamed}
    if role.lower() in CALLS and content_key is not None:
        calls = _calls(turn[content_key])
        content = {"content": turn[content_key]} if calls is None else {"content": "", "tool_calls": calls}
        return fields | {"role": "assistant"} | content
    fields["role"] = known_role(role) or role
    if content_key is not None:
        fields["content"] = turn[content_key]
    return fields


def _calls(text: Any) -> list[dict[str, Any]] | None:
    """The calls that a turn writes as JSON; None where it writes something else."""
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, Mapping) and set(call) == {"name", "arguments"} for call in calls):
        return None
    return [{"type": "function", "function": dict(call)} for call in calls]
