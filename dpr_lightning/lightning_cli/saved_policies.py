"""Print at the end of ``dpr fit`` where the policies and checkpoints are, and the next command."""

import json
import shlex
from typing import Any

from lightning import Trainer

from dpr_lightning.callbacks import ReferenceCheckpoints, ResumableCheckpoints
from dpr_lightning.data import DemonstrationDataModule, RewardDataModule, Rows, RowSource
from dpr_lightning.reports.console import console
from dpr_lightning.trainer_attributes import callbacks_of, is_trial

FINAL = "final"
FIRST_PROMPTS = 4


def print_saved(trainer: Trainer, data: Any) -> None:
    """Print, on rank 0 and where something was saved, one line with the paths and a command that uses the policy.

    Args:
        trainer: after the run.
        data: its DataModule, whose prompts the command answers.
    """
    callbacks: list[Any] = callbacks_of(trainer)
    policies = next((callback for callback in callbacks if isinstance(callback, ReferenceCheckpoints)), None)
    checkpoints = next((callback for callback in callbacks if isinstance(callback, ResumableCheckpoints)), None)
    if not trainer.is_global_zero or is_trial(trainer):
        return
    parts = []
    if policies is not None and FINAL in policies.written:
        earlier = [f"{name} ({fraction:.0%})" for name, fraction in policies.written.items() if fraction < 1.0]
        references = f", its references in the same folder: {', '.join(earlier)}" if earlier else ""
        parts.append(f"The policy is in {policies.folder / FINAL}{references}.")
    if checkpoints is not None and checkpoints.store.steps():
        parts.append(f"Checkpoints: {checkpoints.store.folder}.")
    if policies is not None and FINAL in policies.written:
        command = ["dpr", "generate", "--policy", str(policies.folder / FINAL), *_prompts(data)]
        parts.append(f"Next: {shlex.join(command)}")
    if parts:
        console.print(" ".join(parts), highlight=False, markup=False, soft_wrap=True)


def _prompts(data: Any) -> list[str]:
    """Options of ``dpr generate`` for the first prompts that the run did not learn from, or else of those it did."""
    rows: Rows | RowSource | None = None
    if isinstance(data, DemonstrationDataModule):
        held_out = data.held_out_rows()
        rows = data.train if held_out is None or not isinstance(held_out[0], (str, list)) else held_out[0]
    elif isinstance(data, RewardDataModule):
        rows = data.evaluation_path or data.held_out_path or data.prompts_path
    else:
        return ["--prompts", "FILE"]
    columns = ["--columns", json.dumps(data.columns)] if data.columns else []
    prompts = rows if isinstance(rows, str) else json.dumps(rows)
    return ["--prompts", prompts, *columns, "--limit", str(FIRST_PROMPTS)]
