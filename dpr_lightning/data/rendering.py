"""Conversations rendered by a chat template, checked turn by turn."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.chat_format import Format
from dpr_lightning.data.conversations import Example
from dpr_lightning.data.learnt_parts import OnDropped, check_learnt_parts
from dpr_lightning.data.messages import Message
from dpr_lightning.data.notices import Notices
from dpr_lightning.data.opened_reasoning import continue_reasoning, opens_reasoning
from dpr_lightning.data.template_clock import dated_template
from dpr_lightning.data.template_inputs import reads_variable
from dpr_lightning.data.template_refusals import refusal_cause
from dpr_lightning.data.template_traits import template_traits
from dpr_lightning.data.template_use import notice_unused
from dpr_lightning.errors import InputError, first_line


class Turns(NamedTuple):
    """The text of a conversation, and the text of each trained turn's prompt."""

    whole: str
    prompts: list[str]


def render_turns(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    form: Format,
    notices: Notices,
    on_dropped: OnDropped = "error",
) -> Turns:
    """Render a demonstration, and the prompt of each trained turn, and check that each prompt is a prefix.

    Args:
        example: the demonstration.
        tokenizer: of the policy.
        form: chat template and stop tokens.
        notices: counts what the template leaves out.
        on_dropped: ``error`` or ``warn``, where the template leaves out a part of a turn to learn.

    Raises:
        InputError: names the row and the turn.
    """
    messages = (*example.prompt_messages(), *example.completion_messages())
    trained = [position for position, message in enumerate(messages) if message.train]
    if not trained:
        raise InputError(f"{example.location} has nothing to learn: it is a prompt alone.")
    of_template = whole = render(example, messages[: trained[-1] + 1], tokenizer, form, prompt=False)
    prompts = []
    for position in trained:
        prompt = render(example, messages[:position], tokenizer, form, prompt=True)
        last = position == trained[-1]
        through = whole if last else render(example, messages[: position + 1], tokenizer, form, prompt=False)
        if last and not through.startswith(prompt):
            through = whole = continue_reasoning(messages[position], prompt, through) or through
        turn = f"turn {position + 1} ({messages[position].role})"
        ended = _through_stop(through, len(prompt), form)
        if not through.startswith(prompt) or not whole.startswith(ended):
            raise InputError(
                f"{example.location}, {turn}: the chat template writes the conversation so far differently once more "
                f"follows, {_difference(prompt, through) or _difference(ended, whole)}. The policy would be "
                f"trained on other tokens than it samples after. {_remedy(prompt, form, len(trained) == 1)}"
            )
        _check_closed(example, turn, messages[: position + 1], through[len(prompt) :], tokenizer, form)

        def learnt_of(message: Message, index: int = position, start: int = len(prompt)) -> str:
            turns = (*messages[:index], message)
            return render(example, turns, tokenizer, form, prompt=False)[start:]

        learnt = through[len(prompt) :].rstrip()
        for stop in form.stops:
            learnt = learnt.removesuffix(stop)
        where = f"{example.location}, {turn}"
        check_learnt_parts(messages[position], (prompt, learnt), where, learnt_of, on_dropped, notices)
        prompts.append(prompt)
    _notice_unused(example, messages[: trained[-1] + 1], of_template, tokenizer, form, notices, prompt=False)
    return Turns(whole, prompts)


def _through_stop(through: str, start: int, form: Format) -> str:
    """``through`` up to its first stop token after ``start``: some templates write more where a conversation ends."""
    ends = [index + len(stop) for stop in form.stops if (index := through.find(stop, start)) >= 0]
    return through[: min(ends)] if ends else through.rstrip()


def _remedy(prompt: str, form: Format, single: bool) -> str:
    """The remedy for a template that changes the prompt instead of only appending to it."""
    if not single:
        return _EARLIER_TURNS
    if opens_reasoning(prompt):
        return (
            "The prompt opens the answer's reasoning, and this turn has none: begin its content with "
            r"<think>\n\n</think>\n\n, or give it reasoning, or use a template that only appends."
        )
    assert form.chat_template is not None
    if reads_variable(form.chat_template, THINKING) and prompt.rstrip().endswith("</think>"):
        return (
            f"The prompt has an empty reasoning, and this turn has one: set `data.chat_template_kwargs: {{{THINKING}: "
            "true}`, or remove the reasoning."
        )
    return "Use a template that only appends."


THINKING = "enable_thinking"
"""Variable of templates that write an empty reasoning if it is false."""
_EARLIER_TURNS = (
    'Mark the earlier turns of the assistant "train": false, or give each turn a row that ends with it, or use a '
    "template that only appends."
)


def render_prompt(example: Example, tokenizer: PreTrainedTokenizerBase, form: Format, notices: Notices) -> str:
    """The text of a row's prompt: the one that precedes the completion in the same row's demonstration.

    Raises:
        InputError: the template refuses the conversation.
    """
    messages = example.prompt_messages()
    text = render(example, messages, tokenizer, form, prompt=True)
    _notice_unused(example, messages, text, tokenizer, form, notices, prompt=True)
    return text


def demonstrated_metadata(example: Example, tokenizer: PreTrainedTokenizerBase, form: Format) -> Mapping[str, Any]:
    """The row's columns for verifiers, with the text that an answer must have to repeat the demonstration.

    That is the turn's content, unless the template adds reasoning or tool calls to it, or begins the reasoning in the
    prompt.
    """
    turns = example.demonstrated
    if form.chat_template is None or not any(
        turn.reasoning is not None or turn.tool_calls or "<think" in turn.content for turn in turns
    ):
        return example.metadata
    prompt = example.prompt_messages()
    try:
        before = render(example, prompt, tokenizer, form, prompt=True)
        whole = render(example, (*prompt, *turns), tokenizer, form, prompt=False)
    except InputError:  # the template refuses the answer, which an evaluation does not need
        return example.metadata
    if not whole.startswith(before):
        whole = continue_reasoning(turns[-1], before, whole) or whole
    text = whole.removeprefix(before).rstrip()
    for stop in form.stops:
        text = text.removesuffix(stop)
    return {**example.metadata, "completion": text} if whole.startswith(before) else example.metadata


def _notice_unused(
    example: Example,
    messages: Sequence[Message],
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    form: Format,
    notices: Notices,
    *,
    prompt: bool,
) -> None:
    """Count the parts of the row that the template leaves out: see :func:`notice_unused`."""

    def rendered(example: Example, messages: Sequence[Message]) -> str:
        return render(example, messages, tokenizer, form, prompt=prompt)

    assert form.chat_template is not None
    reads_reasoning = template_traits(tokenizer, form.chat_template).reasoning is not None
    reads_reasoning = reads_reasoning or "</think>" in form.chat_template
    notice_unused(example, messages, text, form.chat_template, reads_reasoning, rendered, notices)


def _check_closed(
    example: Example,
    turn: str,
    messages: Sequence[Message],
    finished: str,
    tokenizer: PreTrainedTokenizerBase,
    form: Format,
) -> None:
    """Check that the template ends the assistant's turn with a stop token, and that its content has none."""
    check_no_stop(example, messages[-1].content, form)
    if finished.rstrip().endswith(form.stops):
        return
    ends = finished.rstrip()[-30:]
    closing = _closing_token(finished, tokenizer)
    # A token that ends only this turn, such as that of a tool call, is no end of turns in general.
    plain = render(example, (*messages[:-1], Message("assistant", "x")), tokenizer, form, prompt=False)
    after = ", after the tool calls" if messages[-1].tool_calls else ""
    remedy = (
        f"If sampling is to stop at {closing!r}, set end_of_turn: {closing!r}, or make it the tokenizer's EOS."
        if closing is not None and closing == _closing_token(plain, tokenizer)
        else f"Put {{{{ eos_token }}}} at the end of all that the chat template writes for the assistant{after}."
    )
    raise InputError(
        f"{example.location}, {turn}: the chat template does not close the assistant's turn with the EOS token "
        f"{form.stops[0]!r}; it ends in {ends!r}. The policy would never learn to stop. {remedy}"
    )


def render(
    example: Example, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, form: Format, *, prompt: bool
) -> str:
    """The text of ``messages``; with ``prompt``, followed by the generation prompt.

    Raises:
        InputError: the template refuses the conversation.
    """
    assert form.chat_template is not None
    traits = template_traits(tokenizer, form.chat_template)
    try:
        return str(
            tokenizer.apply_chat_template(
                [traits.message(message) for message in messages],
                chat_template=dated_template(tokenizer, form.chat_template),
                tokenize=False,
                add_generation_prompt=prompt,
                **traits.inputs(example.inputs),
            )
        )
    except Exception as error:  # a template is a foreign program: it may raise anything
        roles = ", ".join(message.role for message in messages[:12]) + (", …" if len(messages) > 12 else "")
        raise InputError(
            f"{example.location}: the chat template refuses the roles {roles}: {first_line(error).rstrip('.')}. "
            f"{refusal_cause(messages, str(error))}".rstrip()
        ) from error


def check_no_stop(example: Example, content: str, form: Format) -> None:
    """Refuse a content that spells a stop token.

    Raises:
        InputError: names the row.
    """
    for stop in form.stops:
        if stop in content:
            raise InputError(
                f"{example.location}: the completion holds the text {stop!r}, which is the token that ends an answer. "
                "Remove it from the text; it is added where the answer ends. "
                "(`data.special_tokens_in_text: text` encodes it as text.)"
            )


def _difference(short: str, long: str) -> str:
    """Where ``long`` deviates from its expected prefix ``short``, as words; empty where it begins with ``short``."""
    for index, (expected, actual) in enumerate(zip(short, long, strict=False)):
        if expected != actual:
            return f"at character {index}: {short[index : index + 30]!r} becomes {long[index : index + 30]!r}"
    return "" if len(short) <= len(long) else f"which drops {short[len(long) :][:30]!r}"


def _closing_token(text: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token at the end of a text that is special, or looks like it (``<|…|>``); None without."""
    text = text.rstrip()
    for token in map(str, tokenizer.all_special_tokens):
        if text.endswith(token):
            return token
    closing = re.search(r"<\|?[^<>\s]+\|?>$", text)
    return closing.group() if closing and closing.group() in tokenizer.get_vocab() else None
