"""The code blocks of a page, and the comments before them that say what a test does with them.

``<!-- not run: 8 GPUs -->`` on the line before a block of bash or Python says why no test runs it, and
``<!-- file: mine.jsonl -->`` before a block of any language that it is written to this file for the blocks that follow.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPENING = re.compile(r"^(?:<!-- (?P<kind>not run|file): (?P<value>.+?) -->\n)?```(?P<language>\w+)\n", re.MULTILINE)
INSTALLS = ("make", "pip")
"""First words of lines that change the installation: other tests look at what they name."""


class Block(NamedTuple):
    """A code block. ``reason``: why it is not run; ``file``: where it is written; both are empty without a comment."""

    line: int
    language: str
    code: str
    reason: str = ""
    file: str = ""

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line of bash, without comments."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    @property
    def is_run(self) -> bool:
        """Whether a test runs it."""
        return not (self.reason or self.installs)

    @property
    def installs(self) -> bool:
        """Whether all it does is to install."""
        return self.language == "bash" and all(words[0] in INSTALLS for words in self.commands)


def blocks(text: str) -> list[Block]:
    """All blocks of a page, in order."""
    result = []
    for opening in OPENING.finditer(text):
        code = text[opening.end() : text.index("\n```", opening.end() - 1) + 1]
        line = text.count("\n", 0, opening.end()) + 1
        kind, value = opening["kind"], opening["value"]
        result.append(
            Block(
                line,
                opening["language"],
                code,
                reason=value if kind == "not run" else "",
                file=value if kind == "file" else "",
            )
        )
    return result
