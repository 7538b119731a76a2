"""Names of columns (the package's, those of other data sets, the caller's), and the canonical form of a row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpr_lightning.data.loss_spans import LOSS_SPANS
from dpr_lightning.data.messages import REASONING
from dpr_lightning.data.row_types import Row
from dpr_lightning.data.template_inputs import TEMPLATE_COLUMNS
from dpr_lightning.errors import InputError

COLUMNS = ("messages", "prompt", "completion", "answer", "metadata", LOSS_SPANS, *TEMPLATE_COLUMNS)
MESSAGES = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
PROMPTS = ("prompt", "question", "instruction", "problem", "query", "input", "inputs")
COMPLETIONS = ("completion", "response", "output", "solution", "target", "targets", "reply", "answer")
INPUTS = ("input", "context")
"""Columns with the input of an instruction, which are joined to it."""
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
"""Columns that are not used, but that a user may expect to change training."""
MEDIA = ("image", "images", "audio", "audios", "video", "videos", "pixel_values")
JOIN = "\n\n"
"""Separator of columns that are joined."""


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The file's names of the package's columns, and which of them the caller set."""

    names: Mapping[str, str]
    named: frozenset[str]

    def __getitem__(self, key: str) -> str:
        """The file's name of a column."""
        return self.names[key]


@dataclass(frozen=True, slots=True)
class CanonicalRow:
    """A row in its canonical form: ``messages``, or ``prompt`` with or without ``completion``.

    Args:
        row: of the file, unchanged.
        shape: of the row, such as ``Alpaca (instruction, input, output)``; empty for the package's columns.
        columns: the file's columns behind each part, such as ``{"prompt": ("instruction", "input")}``.
        messages: turns as {role, content} objects; None where the row has no conversation.
        prompt: a text, or turns.
        completion: a text, or turns.
        metadata: for verifiers: every other column, the fields of ``metadata``, and ``answer``.
        unused: columns that are not used, but that a user may expect to change training.
        rest: all further columns, which only verifiers read.
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

    @property
    def parts(self) -> dict[str, Any]:
        """The values of the parts that examples are made of."""
        return {"messages": self.messages, "prompt": self.prompt, "completion": self.completion}

    def used(self) -> set[str]:
        """All columns behind the parts."""
        return {column for columns in self.columns.values() for column in columns}


def check_columns(columns: Mapping[str, str] | None) -> ColumnNames:
    """The name of every column: that in ``columns``, else the package's.

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
    """The option ``columns: {…}`` as YAML, for error messages."""
    return f"columns: {{{', '.join(f'{ours}: {theirs}' for ours, theirs in columns.items())}}}"
