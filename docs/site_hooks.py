"""Hooks of the documentation site: of MkDocs for each page, and of griffe for each function that it reads."""

import re
import subprocess
import sys
from typing import Any

from griffe import Class, Expr, ExprBinOp, ExprSubscript, ExprTuple, Extension, Function

from dpr_lightning.cli.command_table import GROUPS, Command, function_name

ROLES = re.compile(r":(?:class|func|meth|data|mod|attr):(?=<code>)")
"""Markers of cross-references in docstrings, in front of a name in backticks."""
COMMANDS = "<!-- commands -->"
"""Where the options of all commands belong."""
WITHOUT_HEADING = "options: {show_root_heading: false, show_root_toc_entry: false, show_signature: false}"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of each page: adds the commands where the page has their marker."""
    return markdown.replace(COMMANDS, commands()) if COMMANDS in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Called by MkDocs with the HTML of each page: removes the markers of cross-references that docstrings have."""
    return ROLES.sub("", html)


def commands() -> str:
    """The options of every command, under the headings of ``dpr --help``."""
    parts = []
    for heading, group in GROUPS.items():
        sections = [_options(name, command) for name, command in group.items() if command.module]
        parts += [f"## {heading}", *sections] if sections else []
    return "\n\n".join(parts)


def _options(name: str, command: Command) -> str:
    heading = f"### dpr {name}"
    if not command.parses_arguments:
        return f"{heading}\n\n::: {command.module}.{function_name(name)}\n    {WITHOUT_HEADING}"
    line = [sys.executable, "-m", "dpr_lightning.cli.main", name, "--help"]
    page = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    return f"{heading}\n\n```text\n{page.rstrip()}\n```"


class PlainTypes(Extension):
    """Shows ``Annotated[str, Writes(…)]`` as ``str``."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Called by griffe for each function."""
        for parameter in func.parameters:
            parameter.annotation = plain(parameter.annotation)

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Called by griffe for each class: the fields of a dataclass are its parameters."""
        for attribute in cls.attributes.values():
            if not attribute.is_alias:
                attribute.annotation = plain(attribute.annotation)


def plain(annotation: str | Expr | None) -> str | Expr | None:
    """The type without what ``Annotated`` adds, also inside of a union or a list."""
    if isinstance(annotation, ExprSubscript) and annotation.canonical_path.endswith("Annotated"):
        inner = annotation.slice
        return plain(inner.elements[0] if isinstance(inner, ExprTuple) else inner)
    if isinstance(annotation, ExprBinOp):
        annotation.left, annotation.right = plain(annotation.left), plain(annotation.right)
    elif isinstance(annotation, ExprSubscript):
        annotation.slice = plain(annotation.slice)
    return annotation
