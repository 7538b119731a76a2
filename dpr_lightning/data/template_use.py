"""Warns of parts of rows that a chat template leaves out, once for a file, with counts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from dpr_lightning.data.conversations import Example
from dpr_lightning.data.messages import Message
from dpr_lightning.data.notices import Notices
from dpr_lightning.data.template_inputs import reads_variable
from dpr_lightning.errors import InputError

Rendered = Callable[[Example, Sequence[Message]], str]
LEFT_OUT = "the chat template leaves out"


def notice_unused(
    example: Example,
    messages: Sequence[Message],
    text: str,
    template: str,
    reads_reasoning: bool,
    rendered: Rendered,
    notices: Notices,
) -> None:
    """Count the parts of a row that do not change its rendered text.

    A part whose text occurs in the rendered text is used. For any other part the row is rendered once more without it:
    if the text is the same, the template does not use the part. Turns to learn are checked by
    :func:`~dpr_lightning.data.learnt_parts.check_learnt_parts` instead.

    Args:
        example: the row.
        messages: that were rendered.
        text: the rendered text.
        template: in Jinja.
        reads_reasoning: whether the template reads the reasoning of messages; it may still cut that of earlier turns.
        rendered: renders another example and other messages in the same way.
        notices: counts.
    """

    def unused(other: Example, turns: Sequence[Message] = messages) -> bool:
        try:
            return rendered(other, turns) == text
        except InputError:
            return False

    inputs = example.inputs
    names = [str(tool.get("function", tool).get("name")) for tool in inputs.tools]
    if not all(name in text for name in names) and unused(replace(example, inputs=replace(inputs, tools=()))):
        notices.add(f"{LEFT_OUT} `tools`", example.location)
    if inputs.documents and unused(replace(example, inputs=replace(inputs, documents=()))):
        notices.add(f"{LEFT_OUT} `documents`", example.location)
    for name in inputs.variables:
        if not reads_variable(template, name):
            notices.add(f"the chat template does not read {name!r} of `chat_template_kwargs`", example.location)
    for name in sorted({name for message in messages for name in message.fields}):
        rest = [_without(message, name) for message in messages]
        if notices.decide(name, partial(unused, example, rest)):
            notices.add(f"{LEFT_OUT} the key {name!r} of messages", example.location)
    for sentence in sorted(_left_out_of_earlier_turns(messages, text, reads_reasoning, lambda t: unused(example, t))):
        notices.add(sentence, example.location)


def notice_without_template(examples: Sequence[Example], notices: Notices) -> None:
    """Count the rows that have inputs for a chat template although there is none."""
    for example in examples:
        inputs = example.inputs
        parts = {"tools": inputs.tools, "documents": inputs.documents, "chat_template_kwargs": inputs.variables}
        for name in (name for name, part in parts.items() if part):
            notices.add(f"there is no chat template, so `{name}` is not used", example.location)


def _left_out_of_earlier_turns(
    messages: Sequence[Message], text: str, reads_reasoning: bool, unused: Callable[[Sequence[Message]], bool]
) -> set[str]:
    """Warnings for parts of turns that are not learnt and that the template leaves out."""
    sentences = set()
    for index, message in enumerate(messages):
        if message.train:
            continue
        if message.reasoning is not None and not reads_reasoning:
            sentences.add(f"{LEFT_OUT} the reasoning of earlier turns")
        if not all(call["function"]["name"] in text for call in message.tool_calls):
            sentences.add(f"{LEFT_OUT} the tool calls of earlier turns")
        content = message.content.strip()
        if reads_reasoning and message.role == "assistant":  # it may cut the reasoning of earlier turns
            content = content.rpartition("</think>")[2].strip()
        if content not in text:
            # Some templates rewrite a content, for example as JSON.
            other = [*messages[:index], replace(message, content=f"{content} {content}"), *messages[index + 1 :]]
            if unused(other):
                sentences.add(f"{LEFT_OUT} the content of messages of role {message.role!r}")
    return sentences


def _without(message: Message, name: str) -> Message:
    return replace(message, fields={key: value for key, value in message.fields.items() if key != name})
