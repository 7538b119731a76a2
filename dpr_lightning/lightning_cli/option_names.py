"""Options in messages by their full names, such as ``model.policy.attention`` for ``attention``."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_args

from lightning import Trainer

from dpr_lightning.paths import import_class, parameters_of

ROW_KEYS = {"train", "loss", "weight", "name", "answer", "text", "tools", "documents"}
"""Names that messages use for keys of rows, whatever options are called."""
_QUOTED = re.compile(r"`([A-Za-z_][\w.]*)(?=`|: |=)")


def with_full_names(message: str, config: Mapping[str, Any]) -> str:
    """A message in which options in backticks have the names that a config or the command line takes.

    A name stays short where two options or none end with it, or where the message has the full name too.

    Args:
        message: of the modules and DataModules, which do not know where in a config they are.
        config: of a LightningCLI command.
    """
    options = [f"trainer.{name}" for name in parameters_of(Trainer)]
    for part in ("model", "data"):
        value = config.get(part)
        if isinstance(value, Mapping) and "class_path" in value and (kind := import_class(value)) is not None:
            options += _options(part, kind)

    def full(match: re.Match[str]) -> str:
        name = match[1]
        matches = [option for option in options if option.endswith(f".{name}")]
        if len(matches) != 1 or name in ROW_KEYS or f"`{matches[0]}`" in message:
            return match[0]
        return f"`{matches[0]}"

    return _QUOTED.sub(full, message)


def _options(prefix: str, kind: type) -> Iterator[str]:
    """Names of the parameters of a class, and of the fields of specifications among them."""
    for name, annotation in parameters_of(kind).items():
        yield f"{prefix}.{name}"
        for part in (annotation, *get_args(annotation)):
            if isinstance(part, type) and is_dataclass(part):
                yield from _options(f"{prefix}.{name}", part)
