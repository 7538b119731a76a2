"""What a run of LightningCLI prints: its progress, and which lines of other libraries are left out."""

import logging
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import ProgressBar

from dpr_lightning.callbacks import ProgressLines, TrainingBar

LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
)
LEFT_OUT = (
    "GPU available:",
    "TPU available:",
    "HPU available:",
    "Seed set to",
    "LOCAL_RANK:",
    "You are using a CUDA device",
    "`Trainer.fit` stopped:",
    "Restoring states from the checkpoint",
    "Restored all states from the checkpoint",
    "Loading `train_dataloader` to estimate",
    "Loaded model weights from the checkpoint",
)
"""How messages of Lightning begin that repeat an option or a line of ours."""


def progress_options(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the trainer for its output: a bar on a terminal, else lines; and no table of modules.

    Args:
        trainer: options, with the callbacks as objects.

    Returns:
        The options to change. What the config names itself is left as it is.
    """
    if trainer.get("barebones"):
        return {}
    options: dict[str, Any] = {}
    if trainer.get("enable_model_summary") is None:
        options["enable_model_summary"] = False
    callbacks = list(trainer.get("callbacks") or [])
    if trainer.get("enable_progress_bar") is not False and not any(isinstance(each, ProgressBar) for each in callbacks):
        # First, so that what other callbacks measure at the beginning and at the end stands under its lines.
        options["callbacks"] = [TrainingBar() if sys.stdout.isatty() else ProgressLines(), *callbacks]
    return options


def quieten() -> None:
    """Drop messages of libraries that say nothing about the run; warnings that concern it stay."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_is_of_use)  # a second time changes nothing
    warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Said of any folder that is not empty; `report_replaced_tables` names the files that are replaced.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")


def _is_of_use(record: logging.LogRecord) -> bool:
    message = record.getMessage().lstrip()
    return "Tip:" not in message and not message.startswith(LEFT_OUT)
