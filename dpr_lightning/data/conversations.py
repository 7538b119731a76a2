"""From a row to a demonstration or a prompt: chat ``messages``, or ``prompt`` with or without ``completion``."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpr_lightning.data.messages import Message, read_messages
from dpr_lightning.data.messages import describe_value as _short
from dpr_lightning.data.messages import row_error as _wrong
from dpr_lightning.data.rows import Row
from dpr_lightning.data.template_inputs import TEMPLATE_COLUMNS, TemplateInputs, read_template_inputs
from dpr_lightning.errors import InputError

COLUMNS = ("messages", "prompt", "completion", "answer", "metadata", *TEMPLATE_COLUMNS)
TURNS = "turns"
# What other data sets call the same thing, for the hint in an error.
SYNONYMS = {
    "prompt": ("question", "instruction", "input", "query", "problem", "source", "text"),
    "completion": ("answer", "response", "output", "solution", "target", "chosen", "reply"),
    "messages": ("conversations", "conversation", "dialog", "dialogue", "chat", "turns"),
}


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """What the file calls our columns, and which of them the caller named."""

    names: Mapping[str, str]
    named: frozenset[str]

    def __getitem__(self, key: str) -> str:
        """The file's name of a column."""
        return self.names[key]


@dataclass(frozen=True, slots=True)
class Example:
    """A demonstration, or a prompt alone (``completion`` is None).

    ``prompt`` and ``completion`` are plain strings, or messages; the completion then holds the closing turns of the
    assistant, and earlier turns of the prompt may be trained on too. ``metadata`` is what verifiers read; ``inputs``
    is what the chat template reads beside the messages.
    """

    file: str
    number: int
    prompt: str | tuple[Message, ...]
    completion: str | tuple[Message, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    inputs: TemplateInputs = field(default_factory=TemplateInputs)

    @property
    def place(self) -> str:
        """``file:number``, as error messages name it."""
        return f"{self.file}:{self.number}"

    @property
    def prompt_text(self) -> str:
        """The query in words: the row's tools and documents, and every turn of the prompt but the system's."""
        turns = self.prompt_messages()
        texts = [self.inputs.text, *(turn.text for turn in turns if turn.role not in ("system", "developer"))]
        return "\n".join(texts if self.inputs.text else texts[1:])

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
        messages = read_messages(row, _value(row, names, "messages"), names["messages"], learn=True)
        last = max((place for place, message in enumerate(messages) if message.train), default=-1)
        if last < 0:
            raise _wrong(row, "has no turn to learn from", "At least one message of role assistant must be trained on.")
        if messages[0].train:
            raise _wrong(row, *_no_prompt(names["messages"]))
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
            completion = read_messages(row, value, names["completion"], learn=True, text=True)
            if not completion or completion[-1].role != "assistant" or not completion[-1].train:
                raise _wrong(row, "has a completion that does not end with a trained turn of the assistant", "")
    _check_prompt(row, prompt, names)
    metadata = _metadata(row, names, completion)
    return Example(row.file, row.number, prompt, completion, metadata, read_template_inputs(row, names.names))


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
        messages = read_messages(row, _value(row, names, "messages"), names["messages"], learn=False)
        start = _closing_turns(messages)
        prompt: str | tuple[Message, ...] = messages[:start]
        completion = messages[start:]
    elif names["prompt"] not in row.values and TURNS in row.values:
        prompt, completion = _first_turn(row), None
    else:
        prompt = _prompt(row, names)
        value = row.values.get(names["completion"])
        completion = value if isinstance(value, str) else None
        if isinstance(value, list) and all(isinstance(turn, Mapping) and "role" in turn for turn in value):
            completion = read_messages(row, value, names["completion"], learn=False, text=True)
    _check_prompt(row, prompt, names)
    metadata = _metadata(row, names, completion)
    return Example(row.file, row.number, prompt, None, metadata, read_template_inputs(row, names.names))


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
    return value if isinstance(value, str) else read_messages(row, value, names["prompt"], learn=False, text=True)


def _first_turn(row: Row) -> str:
    turns = row.values[TURNS]
    first = turns[0] if isinstance(turns, Sequence) and not isinstance(turns, str | bytes) and turns else None
    text = first.get("content") if isinstance(first, Mapping) else first
    if not isinstance(text, str):
        raise _wrong(row, f"has {_short(turns)} as `{TURNS}`", "It must be a list of texts, or of {content} objects.")
    return text


def _closing_turns(messages: Sequence[Message]) -> int:
    """Where the assistant's closing turns start."""
    start = len(messages)
    while start > 0 and messages[start - 1].role == "assistant":
        start -= 1
    return start


def _no_prompt(column: str) -> tuple[str, str]:
    """What is wrong with a conversation that begins with the assistant, and what to do."""
    return (
        f"begins with the assistant: {column}[0] has an empty prompt",
        'Remove that message, or set "train": false there, or put one of the user before it.',
    )


def _check_prompt(row: Row, prompt: str | tuple[Message, ...], names: ColumnNames) -> None:
    if prompt == ():
        raise _wrong(row, *_no_prompt(names["messages"]))
    texts = [prompt] if isinstance(prompt, str) else [message.text for message in prompt]
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
        held["completion"] = completion[-1].text
    return held
