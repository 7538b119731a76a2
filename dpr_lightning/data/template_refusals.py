"""Explains why a chat template refuses a conversation, with a remedy, where the cause can be recognised."""

import itertools
import re
from collections.abc import Sequence

from dpr_lightning.data.messages import Message


def refusal_cause(messages: Sequence[Message], refusal: str) -> str:
    """The likely cause and the remedy; empty where the cause is not recognised.

    Args:
        messages: of the conversation that the template refused.
        refusal: the message of its error.
    """
    lowered = refusal.lower()
    roles = [message.role for message in messages]
    turns = [index for index, role in enumerate(roles) if role not in ("system", "developer")]
    first = roles[turns[0]] if turns else None
    if first == "assistant":
        return f"Its first turn, message {turns[0]}, is the assistant's: remove it, or put one of the user before it."
    if "system" in lowered and re.search(r"not support|only|first|begin", lowered) and "alternate" not in lowered:
        systems = [index for index, role in enumerate(roles) if role in ("system", "developer")]
        if systems and (systems[-1] > 0 or len(systems) > 1):
            return f"Message {systems[-1]} is a system message after the first: join it with the message before."
        if systems:
            return "Put what the system message says at the beginning of the user's first message."
    if "alternate" in lowered:
        return _alternation(roles, lowered)
    calls = [index for index, message in enumerate(messages) if len(message.tool_calls) > 1]
    if "single tool" in lowered and calls:
        return f"Message {calls[0]} calls {len(messages[calls[0]].tool_calls)} tools: make each call a separate turn."
    if re.search(r"tool.?call id", lowered):
        identifiers = [call.get("id") for message in messages for call in message.tool_calls]
        identifiers += [message.fields.get("tool_call_id") for message in messages if message.role == "tool"]
        odd = next((name for name in identifiers if not re.fullmatch(r"[A-Za-z0-9]{9}", str(name))), None)
        return (
            f"A call, or the result of one, has {odd!r}: give calls an `id` and results a `tool_call_id` of this form."
        )
    if re.search(r"concatenate|mapping|item pairs|has no (attribute|element)|is undefined|can only", lowered):
        for index, message in enumerate(messages):
            if any(isinstance(call["function"]["arguments"], str) for call in message.tool_calls):
                return f"The arguments of the tool call in message {index} are a text that is no JSON of an object."
    return ""


def _alternation(roles: Sequence[str], lowered: str) -> str:
    for index, (role, following) in enumerate(itertools.pairwise(roles)):
        if role == following and role in ("user", "assistant"):
            return f"Messages {index} and {index + 1} are both the {role}'s: join them into one."
    if "system" in roles and "optional system" not in lowered:
        return "Put what the system message says at the beginning of the user's first message."
    other = [role for role in roles if role in ("tool", "ipython")]
    if other:
        return "It knows no tools: set `data.chat_template` to a template that does, or leave such rows out."
    return ""
