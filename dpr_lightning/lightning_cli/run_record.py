"""The record of a run that its loggers receive: options, command, commit, versions, hashes of the files it reads."""

import re
import sys
from collections.abc import Mapping
from typing import Any

from lightning import Trainer

from dpr_lightning.callbacks import ResumableCheckpoints
from dpr_lightning.lightning_cli.configs import config_files
from dpr_lightning.provenance import provenance
from dpr_lightning.trainer_attributes import callbacks_of

HASHED = re.compile(r"file [0-9a-f]+|folder [0-9a-f]+|\d+ files .*")
"""How the identity of a run names the content of files."""


def log_record(trainer: Trainer, config: Mapping[str, Any]) -> None:
    """Called when a run begins: hand its record to all loggers. CSVLogger writes it to ``hparams.yaml``.

    Args:
        trainer: with its loggers and callbacks.
        config: of the command, resolved.
    """
    files = [str(path) for path in config_files(sys.argv[1:])]
    record = provenance(sys.argv[1:]) | {"config_files": files, "content": _content(trainer), **plain(config)}
    for logger in trainer.loggers:
        logger.log_hyperparams(record)


def _content(trainer: Trainer) -> dict[str, str]:
    """Hashes of files and folders by option, where the run has checkpoints, which are compared by them."""
    callbacks: list[Any] = callbacks_of(trainer)
    identity = next((each.identity for each in callbacks if isinstance(each, ResumableCheckpoints)), None) or {}
    return {option: value for option, value in identity.items() if HASHED.fullmatch(str(value))}


def plain(value: Any) -> Any:
    """The same with what is neither a mapping, a list nor a plain value as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
