"""From a row to a demonstration or a prompt: chat ``messages``, or ``prompt`` with or without ``completion``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpr_lightning.data.loss_spans import LOSS_SPANS, LossSpan, read_loss_spans
from dpr_lightning.data.messages import Message, read_messages, row_error
from dpr_lightning.data.row_columns import CanonicalRow
from dpr_lightning.data.row_shapes import recognise, required
from dpr_lightning.data.rows import Row
from dpr_lightning.data.template_inputs import TEMPLATE_COLUMNS, TemplateInputs, read_template_inputs


@dataclass(frozen=True, slots=True)
class Example:
    """A demonstration, or a prompt alone (``completion`` is None).

    ``prompt`` and ``completion`` are plain strings, or messages; the completion is then the closing turns of the
    assistant, and earlier turns of the prompt may be trained on too. ``metadata``: columns for verifiers; ``inputs``:
    those that the chat template reads besides the messages. ``shape``, ``unused`` and ``rest`` are those of
    :class:`~dpr_lightning.data.row_columns.CanonicalRow`; ``demonstrated``: of a prompt alone, the row's own answer,
    where it is messages. ``loss_spans``: of a demonstration, parts that are learnt with other weights.
    """

    file: str
    number: int
    prompt: str | tuple[Message, ...]
    completion: str | tuple[Message, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    inputs: TemplateInputs = field(default_factory=TemplateInputs)
    shape: str = ""
    unused: tuple[str, ...] = ()
    demonstrated: tuple[Message, ...] = ()
    rest: tuple[str, ...] = ()
    loss_spans: tuple[LossSpan, ...] = ()

    @property
    def location(self) -> str:
        """``file:number``, as error messages name it."""
        return f"{self.file}:{self.number}"

    @property
    def prompt_text(self) -> str:
        """The prompt as one text: the row's tools and documents, and every turn except the system's."""
        turns = self.prompt_messages()
        texts = [self.inputs.text, *(turn.text for turn in turns if turn.role not in ("system", "developer"))]
        return "\n".join(texts if self.inputs.text else texts[1:])

    def prompt_messages(self) -> tuple[Message, ...]:
        """The prompt as messages; a string becomes a turn of the user."""
        return (Message("user", self.prompt),) if isinstance(self.prompt, str) else self.prompt

    @property
    def learnt_contents(self) -> list[str]:
        """Contents of the turns that are learnt, in order."""
        turns = (*self.prompt_messages(), *self.completion_messages())
        return [message.content for message in turns if message.train]

    def completion_messages(self) -> tuple[Message, ...]:
        """The completion as messages; a string becomes a turn of the assistant."""
        if isinstance(self.completion, str):
            return (Message("assistant", self.completion, train=True),)
        return self.completion or ()


def to_demonstration(row: Row, columns: Mapping[str, str] | None = None) -> Example:
    """Read a demonstration: ``messages``, or ``prompt`` and ``completion``.

    Of ``messages`` every turn of the assistant is learnt unless it has ``"train": false``; turns after the last of
    them are left out. Of ``prompt`` and ``completion`` only the completion is learnt.

    Args:
        row: of a file.
        columns: the row's own names of them, such as ``{"prompt": "question"}``.

    Raises:
        InputError: names the row and what is wrong with it.
    """
    canonical = recognise(row, columns)
    if canonical.messages is not None:
        messages = read_messages(row, canonical.messages, canonical.label("messages"), learn=True)
        last = max((index for index, message in enumerate(messages) if message.train), default=-1)
        if last < 0:
            raise row_error(
                row, "has no turn to learn from", "At least one message of role assistant must be trained on."
            )
        if messages[0].train:
            raise row_error(row, *_no_prompt(canonical.label("messages")))
        start = _closing_turns(messages[: last + 1])
        prompt: str | tuple[Message, ...] = messages[:start]
        completion: str | tuple[Message, ...] = messages[start : last + 1]
    else:
        prompt = _prompt(canonical)
        value = required(canonical, "completion", columns)
        if isinstance(value, str):
            completion = value
            _check_completion(row, value)
        else:
            completion = read_messages(row, value, canonical.label("completion"), learn=True, text=True)
            if not completion or completion[-1].role != "assistant" or not completion[-1].train:
                raise row_error(row, "has a completion that does not end with a trained turn of the assistant", "")
    return _example(canonical, prompt, completion, completion)


def to_prompt(row: Row, columns: Mapping[str, str] | None = None) -> Example:
    """Read a prompt alone: ``prompt``, ``messages`` without the assistant's closing turns, or the first of ``turns``.

    The prompt is that of :func:`to_demonstration` for the same row, unless the row continues after the last turn to
    learn: then the continuation belongs to the prompt. A completion, where there is one, goes into the metadata, for
    verifiers. ``turns`` is how MT-Bench and Arena-Hard write questions: texts, or {content} objects.

    Raises:
        InputError: names the row and what is wrong with it.
    """
    canonical = recognise(row, columns)
    completion: str | tuple[Message, ...] | None
    if canonical.messages is not None:
        messages = read_messages(row, canonical.messages, canonical.label("messages"), learn=False)
        start = _closing_turns(messages)
        prompt: str | tuple[Message, ...] = messages[:start]
        completion = messages[start:]
    else:
        prompt = _prompt(canonical)
        value = canonical.completion
        completion = value if isinstance(value, str) else None
        if isinstance(value, list) and all(isinstance(turn, Mapping) and "role" in turn for turn in value):
            completion = read_messages(row, value, canonical.label("completion"), learn=False, text=True)
    return _example(canonical, prompt, None, completion)


def _example(
    canonical: CanonicalRow,
    prompt: str | tuple[Message, ...],
    completion: str | tuple[Message, ...] | None,
    demonstrated: str | tuple[Message, ...] | None,
) -> Example:
    """The example, with the demonstrated completion in the metadata.

    Raises:
        InputError: the prompt is empty, or a column that the template reads is malformed.
    """
    row, metadata = canonical.row, dict(canonical.metadata)
    _check_prompt(row, prompt, canonical.label("messages"))
    if isinstance(demonstrated, str):
        metadata["completion"] = demonstrated
    elif demonstrated:
        metadata["completion"] = demonstrated[-1].text
    inputs = read_template_inputs(row, {name: canonical.label(name) for name in TEMPLATE_COLUMNS})
    turns = demonstrated if completion is None and isinstance(demonstrated, tuple) else ()
    shape, unused, rest = canonical.shape, canonical.unused, canonical.rest
    spans = () if completion is None else read_loss_spans(row, canonical.label(LOSS_SPANS))
    return Example(row.file, row.number, prompt, completion, metadata, inputs, shape, unused, turns, rest, spans)


def _prompt(canonical: CanonicalRow) -> str | tuple[Message, ...]:
    value, column = canonical.prompt, canonical.label("prompt")
    return value if isinstance(value, str) else read_messages(canonical.row, value, column, learn=False, text=True)


def _closing_turns(messages: Sequence[Message]) -> int:
    """Index of the first of the assistant's closing turns."""
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


def _check_prompt(row: Row, prompt: str | tuple[Message, ...], column: str) -> None:
    if prompt == ():
        raise row_error(row, *_no_prompt(column))
    texts = [prompt] if isinstance(prompt, str) else [message.text for message in prompt]
    if not any(text.strip() for text in texts):
        raise row_error(row, "has an empty prompt", "A policy answers something: give the prompt at least one word.")


def _check_completion(row: Row, completion: str) -> None:
    if not completion.strip():
        raise row_error(row, "has an empty completion", "Remove the row: it would teach the policy to say nothing.")
