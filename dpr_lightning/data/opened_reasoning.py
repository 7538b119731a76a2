"""Templates whose prompts open the assistant's reasoning, and which write finished turns without any."""

import re

from dpr_lightning.data.messages import Message

_OPENED = re.compile(r"<(think(?:ing)?)>(\s*)$")
_THOUGHT = re.compile(r"\s*<think(?:ing)?>(.*?)</think(?:ing)?>(\s*)(.*)", re.DOTALL)


def opens_reasoning(prompt: str) -> bool:
    """Whether a prompt ends with the tag that opens reasoning, as those of DeepSeek-R1 and QwQ do."""
    return _OPENED.search(prompt) is not None


def continue_reasoning(message: Message, prompt: str, finished: str) -> str | None:
    """A conversation whose last turn goes on where its prompt ends: with the reasoning that the prompt has opened.

    Args:
        message: the last turn.
        prompt: what the template writes before it.
        finished: what it writes of the whole conversation, which does not begin with ``prompt``.

    Returns:
        None where the prompt opens no reasoning, the template writes the turn's reasoning itself, or there is none.
    """
    opened = _OPENED.search(prompt)
    if opened is None or not finished.startswith(prompt[: opened.start()]):
        return None
    answer = finished[opened.start() :].lstrip()
    if answer.startswith("<think"):
        return None
    tag, space = opened.groups()
    if message.reasoning is not None:
        return f"{prompt}{message.reasoning.strip()}\n</{tag}>\n\n{answer}"
    thought = _THOUGHT.fullmatch(message.content)
    if thought is None:
        return None
    reasoning, gap, _ = thought.groups()
    return f"{prompt}{reasoning.lstrip() if space else reasoning}</{tag}>{gap}{answer}"
