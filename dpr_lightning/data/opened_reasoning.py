"""Templates whose prompts open the assistant's reasoning, but which render finished turns without reasoning."""

import re

from dpr_lightning.data.messages import Message

_OPENED = re.compile(r"<(think(?:ing)?)>(\s*)$")
_THOUGHT = re.compile(r"\s*<think(?:ing)?>(.*?)</think(?:ing)?>(\s*)(.*)", re.DOTALL)


def opens_reasoning(prompt: str) -> bool:
    """Whether a prompt ends with the tag that opens reasoning, as those of DeepSeek-R1 and QwQ do."""
    return _OPENED.search(prompt) is not None


def continue_reasoning(message: Message, prompt: str, finished: str) -> str | None:
    """The text of a conversation in which the last turn continues the reasoning that its prompt opens.

    Args:
        message: the last turn.
        prompt: the rendered text before it.
        finished: the rendered text of the whole conversation, which does not begin with ``prompt``.

    Returns:
        None where the prompt opens no reasoning, the template renders the turn's reasoning, or the turn has none.
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
