"""Names of columns: our own, those of other data sets, and those that the caller gives; and a row in its one form."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpr_lightning.data.messages import REASONING
from dpr_lightning.data.row_types import Row
from dpr_lightning.data.template_inputs import TEMPLATE_COLUMNS
from dpr_lightning.errors import InputError

COLUMNS = ("messages", "prompt", "completion", "answer", "metadata", *TEMPLATE_COLUMNS)
MESSAGES = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
PROMPTS = ("prompt", "question", "instruction", "problem", "query", "input", "inputs")
COMPLETIONS = ("completion", "response", "output", "solution", "target", "targets", "reply", "answer")
INPUTS = ("input", "context")
"""What an instruction is about: joined to it."""
SYSTEMS = ("system", "system_prompt")
TURNS, TEXT, CHOSEN, HISTORY = "turns", "text", "chosen", "history"
THOUGHTS = (*REASONING, "thought", "thoughts", "rationale", "explanation", "cot", "chain_of_thought")
CONTENT = frozenset((*MESSAGES, *PROMPTS, *COMPLETIONS, *INPUTS, *SYSTEMS, *THOUGHTS, TURNS, TEXT, CHOSEN, HISTORY))
"""Columns of texts to learn from."""
TRAINING = frozenset(
    ("rejected", "weight", "weights", "sample_weight", "loss", "loss_weight", "loss_mask", "mask", "train", "label",
     "labels", "reward", "rewards", "score", "scores", "score_chosen", "score_rejected", "rating", "kto_tag", "margin",
     "split", "instances")
)  # fmt: skip
"""Columns that would change training if they were used, which they are not."""
MEDIA = ("image", "images", "audio", "audios", "video", "videos", "pixel_values")
JOIN = "\n\n"
"""Between columns that are joined."""


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """What the file calls our columns, and which of them the caller named."""

    names: Mapping[str, str]
    named: frozenset[str]

    def __getitem__(self, key: str) -> str:
        """The file's name of a column."""
        return self.names[key]


@dataclass(frozen=True, slots=True)
class CanonicalRow:
    """A row in the one form that is read: ``messages``, or ``prompt`` with or without ``completion``.

    Args:
        row: as the file has it.
        shape: how it was read, such as ``Alpaca (instruction, input, output)``; empty for the package's columns.
        columns: the file's columns behind each part, such as ``{"prompt": ("instruction", "input")}``.
        messages: turns as {role, content} objects; None where the row has no conversation.
        prompt: a text, or turns.
        completion: a text, or turns.
        metadata: for verifiers: every other column, the fields of ``metadata``, and ``answer``.
        unused: columns that look as if they mattered for training and are not used.
        rest: further columns, which only verifiers read.
    """

    row: Row
    shape: str
    columns: Mapping[str, tuple[str, ...]]
    messages: Any = None
    prompt: Any = None
    completion: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()

    def label(self, part: str) -> str:
        """The file's name of a part, for messages."""
        return " + ".join(self.columns.get(part, (part,)))

    def used(self) -> set[str]:
        """All columns behind the parts."""
        return {column for columns in self.columns.values() for column in columns}


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


def column_parts(name: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that a name stands for: itself, or those that ``a+b`` joins."""
    if name in values or "+" not in name:
        return (name,)
    return tuple(part.strip() for part in name.split("+"))


def as_option(columns: Mapping[str, str]) -> str:
    """The option that reads a row so, as YAML has it."""
    return f"columns: {{{', '.join(f'{ours}: {theirs}' for ours, theirs in columns.items())}}}"
