"""Conversations written as one text, with markers such as ``### Human:`` or ``<|im_start|>user``, split into turns."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Markers:
    """The markers of turns of one family of texts.

    Args:
        name: for messages.
        header: pattern of the marker that begins a turn; its group ``role`` is a key of ``roles``.
        roles: role of each marker, in lower case; ``input`` continues the user's turn.
        end: pattern of the marker that ends a turn, which is not part of the content.
    """

    name: str
    header: re.Pattern[str]
    roles: Mapping[str, str]
    end: re.Pattern[str]

    def first(self, text: str) -> re.Match[str] | None:
        """The first marker of a text with a marker of the user or the assistant; None for any other text."""
        headers = list(self.header.finditer(text))
        sides = {self.roles.get(header["role"].lower()) for header in headers}
        return headers[0] if sides & {"user", "assistant"} else None


NAMED = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
}
STOPS = re.compile(r"(?:</s>|<\|endoftext\|>|<\|end_of_text\|>)\s*(?:$|(?=###|USER:|Human:|User:))")
FAMILIES = (
    Markers("ChatML", re.compile(r"<\|im_start\|>(?P<role>\w+)\n"), NAMED, re.compile(r"<\|im_end\|>|<\|endoftext\|>")),
    Markers(
        "Llama 3",
        re.compile(r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n*"),
        {**NAMED, "ipython": "tool"},
        re.compile(r"<\|eot_id\|>|<\|begin_of_text\|>|<\|end_of_text\|>"),
    ),
    Markers("Gemma", re.compile(r"<start_of_turn>(?P<role>\w+)\n"), NAMED, re.compile(r"<end_of_turn>|<bos>|<eos>")),
    Markers(
        "Llama 2",
        re.compile(r"(?P<role>\[INST\]|<<SYS>>|<</SYS>>|\[/INST\])"),
        {"[inst]": "user", "<<sys>>": "system", "<</sys>>": "user", "[/inst]": "assistant"},
        re.compile(r"</?s>"),
    ),
    Markers(
        "Zephyr",
        re.compile(r"<\|(?P<role>system|user|assistant)\|>\n"),
        NAMED,
        re.compile(r"</s>|<\|end\|>|<\|endoftext\|>"),
    ),
    Markers("### Human:", re.compile(r"### ?(?P<role>System|Human|User|Assistant) ?: ?"), NAMED, STOPS),
    Markers(
        "### Instruction:",
        re.compile(r"### ?(?P<role>System|Instruction|Input|Response|Output) ?: ?"),
        {"system": "system", "instruction": "user", "input": "input", "response": "assistant", "output": "assistant"},
        STOPS,
    ),
    Markers("Human:", re.compile(r"(?:^|\n\n)(?P<role>Human|Assistant): ?"), NAMED, STOPS),
    Markers("USER:", re.compile(r"(?:^|(?<=\s)|(?<=</s>))(?P<role>SYSTEM|USER|ASSISTANT): ?"), NAMED, STOPS),
    Markers("User:", re.compile(r"(?:^|\n)(?P<role>System|User|Assistant): ?"), NAMED, STOPS),
)
"""A text is split by the family whose marker comes first in it; of several, by the first in this order."""


class UnclearTurns(ValueError):
    """The markers leave open which side a turn belongs to."""


def split_turns(text: str) -> tuple[str, list[dict[str, Any]]] | None:
    """The name of the markers, and the turns between them; None for a text without markers.

    The text before the first marker is a system turn. White space around a turn is dropped, and so is an
    empty turn of the assistant at the end, which a sampler would continue.

    Raises:
        UnclearTurns: two turns of the same side follow each other.
    """
    matches = [(header.start(), number) for number, family in enumerate(FAMILIES) if (header := family.first(text))]
    if not matches:
        return None
    family = FAMILIES[min(matches)[1]]
    return family.name, _turns(text, family, list(family.header.finditer(text)))


def _turns(text: str, family: Markers, headers: list[re.Match[str]]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    before = _content(text[: headers[0].start()], family)
    if before:
        turns.append({"role": "system", "content": before})
    ends = [header.start() for header in headers[1:]] + [len(text)]
    for number, (header, end) in enumerate(zip(headers, ends, strict=True)):
        role = family.roles.get(header["role"].lower())
        content = _content(text[header.end() : end], family)
        if role is None:
            raise UnclearTurns(f"marks a turn of {header['role']!r}, a role that is not known")
        follows = turns[-1]["role"] if turns else None
        if role == "input":
            if follows != "user":
                raise UnclearTurns(f"has {header[0].strip()!r} where no question stands before it")
            turns[-1]["content"] += f"\n\n{content}" if content else ""
        elif not content and (role in ("user", "system") or number + 1 == len(headers)):
            continue  # [INST] before <<SYS>>, or a text that ends where the answer would begin
        elif role == follows and role in ("user", "assistant"):
            raise UnclearTurns(f"has two turns of the {role} that follow each other, at {header[0].strip()!r}")
        else:
            turns.append({"role": role, "content": content})
    return turns


def _content(text: str, family: Markers) -> str:
    return family.end.sub("", text).strip()
