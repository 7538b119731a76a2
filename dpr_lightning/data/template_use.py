"""Which parts of a row a chat template writes, and which it leaves out: said once for a file, with counts."""

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
    """Count what a row has and its text does not depend on.

    What can be seen in the text is not tried. The rest is rendered once more without it: where the text is the same,
    the template does not use it. Turns that are learnt are checked apart, part by part.

    Args:
        example: the row.
        messages: those rendered.
        text: what the template made of them.
        template: in Jinja.
        reads_reasoning: the template reads the reasoning of messages, though it may cut that of earlier turns.
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
        notices.add(f"{LEFT_OUT} `tools`", example.place)
    if inputs.documents and unused(replace(example, inputs=replace(inputs, documents=()))):
        notices.add(f"{LEFT_OUT} `documents`", example.place)
    for name in inputs.variables:
        if not reads_variable(template, name):
            notices.add(f"the chat template does not read {name!r} of `chat_template_kwargs`", example.place)
    for name in sorted({name for message in messages for name in message.fields}):
        rest = [_without(message, name) for message in messages]
        if notices.decide(name, partial(unused, example, rest)):
            notices.add(f"{LEFT_OUT} the key {name!r} of messages", example.place)
    for sentence in sorted(_left_out_of_earlier_turns(messages, text, reads_reasoning, lambda t: unused(example, t))):
        notices.add(sentence, example.place)


def notice_without_template(examples: Sequence[Example], notices: Notices) -> None:
    """Count the rows that give a chat template something where there is none."""
    for example in examples:
        inputs = example.inputs
        parts = {"tools": inputs.tools, "documents": inputs.documents, "chat_template_kwargs": inputs.variables}
        for name in (name for name, part in parts.items() if part):
            notices.add(f"there is no chat template, so `{name}` is not used", example.place)


def _left_out_of_earlier_turns(
    messages: Sequence[Message], text: str, reads_reasoning: bool, unused: Callable[[Sequence[Message]], bool]
) -> set[str]:
    """What the template leaves out of turns that are not learnt."""
    sentences = set()
    for index, message in enumerate(messages):
        if message.train:
            continue
        if message.reasoning is not None and not reads_reasoning:
            sentences.add(f"{LEFT_OUT} the reasoning of earlier turns")
        if not all(call["function"]["name"] in text for call in message.tool_calls):
            sentences.add(f"{LEFT_OUT} the tool calls of earlier turns")
        content = message.content.strip()
        if reads_reasoning and message.role == "assistant":  # it may cut that from earlier turns
            content = content.rpartition("</think>")[2].strip()
        if content not in text:
            # Some templates write a content changed, as JSON for example.
            other = [*messages[:index], replace(message, content=f"{content} {content}"), *messages[index + 1 :]]
            if unused(other):
                sentences.add(f"{LEFT_OUT} the content of messages of role {message.role!r}")
    return sentences


def _without(message: Message, name: str) -> Message:
    return replace(message, fields={key: value for key, value in message.fields.items() if key != name})
