"""From a row to a demonstration or a prompt: chat ``messages``, or ``prompt`` with or without ``completion``."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpr_lightning.data.rows import Row
from dpr_lightning.errors import InputError

ROLES = ("system", "user", "assistant", "tool")
COLUMNS = ("messages", "prompt", "completion", "answer", "metadata")
TURNS = "turns"
# What other data sets call the same thing, for the hint in an error.
SYNONYMS = {
    "prompt": ("question", "instruction", "input", "query", "problem", "source", "text"),
    "completion": ("answer", "response", "output", "solution", "target", "chosen", "reply"),
    "messages": ("conversations", "conversation", "dialog", "dialogue", "chat", "turns"),
}
ROLE_SYNONYMS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant"}


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """What the file calls our columns, and which of them the caller named."""

    names: Mapping[str, str]
    named: frozenset[str]

    def __getitem__(self, key: str) -> str:
        """The file's name of a column."""
        return self.names[key]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``train``: whether the policy learns to say it; ``fields``: all that a chat template may ask for."""

    role: str
    content: str
    train: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)

    def rendered(self) -> dict[str, Any]:
        """As chat templates take it."""
        return {**self.fields, "role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Example:
    """A demonstration, or a prompt alone (``completion`` is None).

    ``prompt`` and ``completion`` are plain strings, or messages; the completion then holds the closing turns of the
    assistant, and earlier turns of the prompt may be trained on too. ``metadata`` is what verifiers read.
    """

    file: str
    number: int
    prompt: str | tuple[Message, ...]
    completion: str | tuple[Message, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """``file:number``, as error messages name it."""
        return f"{self.file}:{self.number}"

    @property
    def prompt_text(self) -> str:
        """What was asked, in words: every turn of the prompt but the system's."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(message.content for message in self.prompt if message.role != "system")

    def prompt_messages(self) -> tuple[Message, ...]:
        """The prompt as messages; a string is what the user says."""
        return (Message("user", self.prompt),) if isinstance(self.prompt, str) else self.prompt

    def completion_messages(self) -> tuple[Message, ...]:
        """The completion as messages; a string is what the assistant says."""
        if isinstance(self.completion, str):
            return (Message("assistant", self.completion, train=True),)
        return self.completion or ()


def to_demonstration(row: Row, columns: Mapping[str, str] | None = None) -> Example:
    """Read a demonstration: ``messages``, or ``prompt`` and ``completion``.

    Of ``messages`` every turn of the assistant is learnt from unless it says ``"train": false``; what follows the
    last of them is left out. Of ``prompt`` and ``completion`` only the completion is learnt from.

    Args:
        row: the row.
        columns: where the row keeps them under other names, such as ``{"prompt": "question"}``.

    Raises:
        InputError: names the row and what is wrong with it.
    """
    names = check_columns(columns)
    if _uses_messages(row, names):
        messages = _messages(row, _value(row, names, "messages"), names["messages"], learn=True)
        last = max((place for place, message in enumerate(messages) if message.train), default=-1)
        if last < 0:
            raise _wrong(row, "has no turn to learn from", "At least one message of role assistant must be trained on.")
        start = _closing_turns(messages[: last + 1])
        prompt: str | tuple[Message, ...] = messages[:start]
        completion: str | tuple[Message, ...] = messages[start : last + 1]
    else:
        prompt = _prompt(row, names)
        value = _value(row, names, "completion")
        if isinstance(value, str):
            completion = value
            _check_completion(row, value)
        else:
            completion = _messages(row, value, names["completion"], learn=True, text=True)
            if not completion or completion[-1].role != "assistant" or not completion[-1].train:
                raise _wrong(row, "has a completion that does not end with a trained turn of the assistant", "")
    _check_prompt(row, prompt)
    return Example(row.file, row.number, prompt, completion, _metadata(row, names, completion))


def to_prompt(row: Row, columns: Mapping[str, str] | None = None) -> Example:
    """Read a prompt alone: ``prompt``, ``messages`` without the assistant's closing turns, or the first of ``turns``.

    The prompt is the one that :func:`to_demonstration` would find in the same row, unless the row goes on after the
    last turn that is learnt from: then what it goes on with is asked. A completion, where there is one, goes into the
    metadata, for verifiers. ``turns`` is how MT-Bench and Arena-Hard write questions: texts, or {content} objects.

    Raises:
        InputError: names the row and what is wrong with it.
    """
    names = check_columns(columns)
    completion: str | tuple[Message, ...] | None
    if _uses_messages(row, names):
        messages = _messages(row, _value(row, names, "messages"), names["messages"], learn=False)
        start = _closing_turns(messages)
        prompt: str | tuple[Message, ...] = messages[:start]
        completion = messages[start:]
    elif names["prompt"] not in row.values and TURNS in row.values:
        prompt, completion = _first_turn(row), None
    else:
        prompt = _prompt(row, names)
        value = row.values.get(names["completion"])
        completion = value if isinstance(value, str) else None
    _check_prompt(row, prompt)
    return Example(row.file, row.number, prompt, None, _metadata(row, names, completion))


def check_columns(columns: Mapping[str, str] | None) -> ColumnNames:
    """Every column's name, our own where ``columns`` says nothing.

    Raises:
        InputError: ``columns`` names something that is no column of ours.
    """
    columns = columns or {}
    for key in columns:
        if key not in COLUMNS:
            raise InputError(
                f"`columns` maps {', '.join(COLUMNS)} to the names that the file uses; found {key!r}. "
                "Write for example columns: {prompt: question, completion: answer}."
            )
    return ColumnNames({name: columns.get(name, name) for name in COLUMNS}, frozenset(columns))


def _uses_messages(row: Row, names: ColumnNames) -> bool:
    """Messages win over a prompt beside them, unless the caller named the prompt's column."""
    if "messages" in names.named:
        return True
    return names["messages"] in row.values and "prompt" not in names.named


def _value(row: Row, names: ColumnNames, key: str) -> Any:
    if names[key] in row.values:
        return row.values[names[key]]
    found = list(row.values)
    hint = ""
    if key not in names.named:
        candidates = [name for name in found if name.lower() in SYNONYMS.get(key, ())]
        if key == "prompt" and not candidates:
            chats = [name for name in found if name.lower() in SYNONYMS["messages"]]
            key, candidates = ("messages", chats) if chats else (key, candidates)
        candidates = candidates or difflib.get_close_matches(key, found, n=1, cutoff=0.6)
        if candidates:
            meant = {key: candidates[0]}
            if key == "prompt" and names["completion"] not in found:
                answers = [name for name in found if name.lower() in SYNONYMS["completion"]]
                meant |= {"completion": answers[0]} if answers else {}
            listed = ", ".join(f"{ours}: {theirs}" for ours, theirs in meant.items())
            hint = f"Probably {' and '.join(map(repr, meant.values()))} is meant: set columns: {{{listed}}}."
    else:
        near = difflib.get_close_matches(names[key], found, n=1, cutoff=0.5)
        hint = f"`columns` says {key}: {names[key]}" + (f"; did you mean {near[0]!r}?" if near else ".")
    listed = ", ".join(map(repr, found[:12])) or "none"
    hint = hint or "Name the right ones with `columns`, for example columns: {prompt: question, completion: answer}."
    raise _wrong(row, f"has no {names[key]!r}; its keys are {listed}", hint)


def _prompt(row: Row, names: ColumnNames) -> str | tuple[Message, ...]:
    value = _value(row, names, "prompt")
    return value if isinstance(value, str) else _messages(row, value, names["prompt"], learn=False, text=True)


def _first_turn(row: Row) -> str:
    turns = row.values[TURNS]
    first = turns[0] if isinstance(turns, Sequence) and not isinstance(turns, str | bytes) and turns else None
    text = first.get("content") if isinstance(first, Mapping) else first
    if not isinstance(text, str):
        raise _wrong(row, f"has {_short(turns)} as `{TURNS}`", "It must be a list of texts, or of {content} objects.")
    return text


def _messages(row: Row, value: Any, column: str, *, learn: bool, text: bool = False) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        either = "a string or " if text else ""
        raise _wrong(
            row, f"has {_short(value)} in {column!r}", f"It must be {either}a list of {{role, content}} objects."
        )
    return tuple(_message(row, turn, f"{column}[{place}]", learn) for place, turn in enumerate(value))


def _message(row: Row, value: Any, where: str, learn: bool) -> Message:
    if not isinstance(value, Mapping):
        raise _wrong(row, f"has {_short(value)} at {where}", "A message is an object with `role` and `content`.")
    if "role" not in value:
        sharegpt = {"from", "value"} <= set(value)
        remedy = "This is the ShareGPT form: rename from to role (human: user, gpt: assistant) and value to content."
        found = ", ".join(map(repr, value)) or "nothing"
        raise _wrong(row, f"has a message without `role` at {where}; it holds {found}", remedy if sharegpt else "")
    role = value["role"]
    if role not in ROLES:
        near = ROLE_SYNONYMS.get(str(role).lower())
        matches = [near] if near else difflib.get_close_matches(str(role).lower(), ROLES, n=1)
        meant = f" Did you mean {matches[0]!r}?" if matches else ""
        raise _wrong(row, f"has the unknown role {role!r} at {where}", f"Roles are {', '.join(ROLES)}.{meant}")
    fields = {
        name: part for name, part in value.items() if name not in ("role", "content", "train") and part is not None
    }
    content = _content(row, value.get("content"), where, optional=bool(fields.get("tool_calls")))
    train = value.get("train")
    if train is not None and not isinstance(train, bool):
        raise _wrong(row, f"has {_short(train)} as `train` at {where}", "It must be true or false.")
    if train and role != "assistant":
        raise _wrong(row, f"asks to train on the {role}'s turn at {where}", "Only the assistant's turns are learnt.")
    train = learn and role == "assistant" and train is not False
    if train and not content.strip() and not fields.get("tool_calls"):
        raise _wrong(row, f"has an empty completion at {where}", 'Remove the row, or set "train": false there.')
    return Message(role, content, train, fields)


def _content(row: Row, value: Any, where: str, *, optional: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    if isinstance(value, Sequence) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in value
    ):
        return "".join(part["text"] for part in value)
    raise _wrong(row, f"has {_short(value)} as content at {where}", "It must be a string, or a list of text parts.")


def _closing_turns(messages: Sequence[Message]) -> int:
    """Where the assistant's closing turns start."""
    start = len(messages)
    while start > 0 and messages[start - 1].role == "assistant":
        start -= 1
    return start


def _check_prompt(row: Row, prompt: str | tuple[Message, ...]) -> None:
    texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    if not any(text.strip() for text in texts):
        raise _wrong(row, "has an empty prompt", "A policy answers something: give the prompt at least one word.")


def _check_completion(row: Row, completion: str) -> None:
    if not completion.strip():
        raise _wrong(row, "has an empty completion", "Remove the row: it would teach the policy to say nothing.")


def _metadata(row: Row, names: ColumnNames, completion: str | tuple[Message, ...] | None) -> dict[str, Any]:
    """All other columns, the fields of a ``metadata`` column among them, and the demonstrated completion."""
    used = {names["messages"], names["prompt"], names["metadata"]}
    held = {name: value for name, value in row.values.items() if name not in used}
    nested = row.values.get(names["metadata"])
    if isinstance(nested, Mapping):
        held |= nested
    elif nested is not None:
        held["metadata"] = nested
    if names["answer"] in row.values:
        held["answer"] = row.values[names["answer"]]
    if isinstance(completion, str):
        held["completion"] = completion
    elif completion:
        held["completion"] = completion[-1].content
    return held


def _wrong(row: Row, what: str, remedy: str) -> InputError:
    return InputError(f"{row.place} {what}. {remedy}".rstrip())


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"{type(value).__name__} {text[:50]}{'…' if len(text) > 50 else ''}"
