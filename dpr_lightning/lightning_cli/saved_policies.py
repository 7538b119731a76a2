"""Print at the end of ``dpr fit`` what was saved, what the run measured first and last, and the next commands."""

import json
import shlex
from collections.abc import Iterator
from typing import Any

from lightning import Trainer

from dpr_lightning.callbacks import BestPolicy, ReferenceCheckpoints, ResumableCheckpoints, RunManifestFile
from dpr_lightning.callbacks.best_policy import BEST
from dpr_lightning.data import DemonstrationDataModule, PolicyDataModule, RewardDataModule, Rows
from dpr_lightning.lightning_cli.sft_verdict import curves_of, finished_sft
from dpr_lightning.reports.console import console
from dpr_lightning.reports.metrics_table import first_to_last
from dpr_lightning.trainer_attributes import callbacks_of, is_trial

FINAL = "final"
FIRST_PROMPTS = 4


def print_saved(trainer: Trainer, data: Any) -> None:
    """Print, on rank 0 and where something was saved, the paths, the scores, and commands that use the policy.

    Args:
        trainer: after the run.
        data: its DataModule, whose prompts the commands answer.
    """
    if trainer.is_global_zero and not is_trial(trainer):
        for line in (*_saved(trainer), *_scores(trainer), *_commands(trainer, data)):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _saved(trainer: Trainer) -> Iterator[str]:
    callbacks: list[Any] = callbacks_of(trainer)
    policies = _policies(trainer)
    checkpoints = next((callback for callback in callbacks if isinstance(callback, ResumableCheckpoints)), None)
    best = next((callback for callback in callbacks if isinstance(callback, BestPolicy)), None)
    parts = []
    if policies is not None:
        earlier = [f"{name} ({fraction:.0%})" for name, fraction in policies.written.items() if fraction < 1.0]
        references = f", its references in the same folder: {', '.join(earlier)}" if earlier else ""
        parts.append(f"The policy is in {policies.folder / FINAL}{references}.")
    if best is not None and best.step is not None:
        parts.append(f"The one with the best validation, of step {best.step:,}, is in {best.folder / BEST}.")
    if checkpoints is not None and checkpoints.store.steps():
        parts.append(f"Checkpoints: {checkpoints.store.folder}.")
    if parts:
        yield " ".join(parts)


def _scores(trainer: Trainer) -> Iterator[str]:
    """What the run measured first and last, and what that says of more steps."""
    parts = first_to_last(curves_of(trainer))
    if parts:
        yield f"First → last: {', '.join(parts)}."
    verdict = finished_sft(trainer)
    if verdict is not None:
        yield verdict.reason


def _commands(trainer: Trainer, data: Any) -> Iterator[str]:
    policies = _policies(trainer)
    if policies is None:
        return
    final = str(policies.folder / FINAL)
    references = [str(policies.folder / name) for name, fraction in policies.written.items() if fraction < 1.0]
    prompts, columns = _prompts(data)
    held_out = data.held_out_rows() if isinstance(data, DemonstrationDataModule) else None
    callbacks: list[Any] = callbacks_of(trainer)
    manifest = next((callback.path for callback in callbacks if isinstance(callback, RunManifestFile)), None)
    if manifest is not None:
        run = shlex.quote(str(manifest.parent))
        yield f"Next, talk to it: dpr chat --run {run}"
        if references and held_out is not None:
            yield f"Next, is their reward worth training on: dpr check --run {run}"
        else:
            yield f"Next, a plain Hugging Face folder: dpr export --run {run} --output my-model"
        return
    generate = ["dpr", "generate", "--policy", final, *(prompts or ["--prompts", "FILE"]), *columns]
    yield f"Next, its answers: {shlex.join([*generate, '--limit', str(FIRST_PROMPTS)])}"
    if references and held_out is not None and prompts:
        preview = ["dpr", "preview", "--sft", final, "--references", json.dumps(references), *prompts, *columns]
        yield f"Next, where their reward leads: {shlex.join(preview)}"


def _policies(trainer: Trainer) -> ReferenceCheckpoints | None:
    """The callback that saved the policy at the end; None where none did."""
    callbacks: list[Any] = callbacks_of(trainer)
    saving = (callback for callback in callbacks if isinstance(callback, ReferenceCheckpoints))
    return next((callback for callback in saving if FINAL in callback.written), None)


def _prompts(data: Any) -> tuple[list[str], list[str]]:
    """Options that name the prompts which the run did not learn from, or else those it did, and their columns."""
    held_out = data.held_out_rows() if isinstance(data, PolicyDataModule) else None
    rows: Rows | None = None
    columns = None
    if held_out is not None and isinstance(held_out[0], (str, list)):
        rows, columns = held_out[0], held_out[1]
    elif isinstance(data, DemonstrationDataModule):
        rows, columns = data.train, data.columns
    elif isinstance(data, RewardDataModule):
        rows, columns = data.evaluation_path or data.prompts_path, data.columns
    named = [] if rows is None else ["--prompts", rows if isinstance(rows, str) else json.dumps(rows)]
    return named, ["--columns", json.dumps(columns)] if columns else []
