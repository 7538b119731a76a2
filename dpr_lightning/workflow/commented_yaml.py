"""A config as YAML that people read: short sections in one line, and comments next to options."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from dpr_lightning.workflow.config_settings import Config

WIDTH = 120
COLUMN = 31
"""Column from which comments begin, where the line is shorter."""
_EXPONENT = re.compile(r"(?<=\de)(-)0(?=\d\b)")
"""The zero of 1.0e-05, as PyYAML writes it."""


def commented_yaml(config: Config, comments: Mapping[str, str]) -> str:
    """Write a config as YAML.

    Args:
        config: plain data.
        comments: by the dotted option that they stand next to, ``init_args`` left out.

    Returns:
        The text. A section is in one line where it has no comment inside and fits.
    """
    return "".join(f"{line}\n" for line in _lines(config, comments, "", 0))


def _lines(section: Config, comments: Mapping[str, str], path: str, depth: int) -> list[str]:
    result = []
    for key, value in section.items():
        option = path if key == "init_args" else f"{path}.{key}".removeprefix(".")
        begin = f"{'  ' * depth}{key}:"
        one_line = f"{begin} {_flow(value)}"
        inside = any(commented.startswith(f"{option}.") for commented in comments)
        if isinstance(value, dict) and value and (inside or len(one_line) > WIDTH):
            result += [begin, *_lines(value, comments, option, depth + 1)]
        elif key != "init_args" and option in comments:
            result.append(f"{f'{one_line}  ':<{COLUMN}} # {comments[option]}")
        else:
            result.append(one_line)
    return result


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf"))
    return _EXPONENT.sub(r"\1", text.removesuffix("\n").removesuffix("\n..."))
