"""Whether the SFT of `dpr fit` is finished, by its table of metrics; noted in the manifest of the run."""

from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from dpr_lightning.callbacks import GenerationEvaluation, RunManifestFile
from dpr_lightning.callbacks.run_ends import stopped_by_time
from dpr_lightning.evaluation.finished_sft import FinishedSft, Points, RunLength, judge_finished
from dpr_lightning.modules import SupervisedIRL
from dpr_lightning.reports.metrics_table import Curves, read_curves
from dpr_lightning.run_manifest import FINISHED, RunManifest, add_to_stage
from dpr_lightning.trainer_attributes import callbacks_of

ANSWERS = "evaluation/greedy"


def curves_of(trainer: Trainer) -> Curves:
    """What the first table of metrics has of the whole run, also of the parts before it was resumed."""
    tables = [Path(logger.log_dir) / "metrics.csv" for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    return read_curves(tables[0]) if tables else {}


def finished_sft(trainer: Trainer) -> FinishedSft | None:
    """Judge the run, and note it in its manifest; None: it is no SFT, was not validated, or was stopped by time.

    A run of which nothing was left to do has the verdict that it had.

    Args:
        trainer: after the run, on rank 0.
    """
    module: Any = trainer.lightning_module
    if not isinstance(module, SupervisedIRL) or module.loss != "sft" or stopped_by_time(trainer):
        return None
    callbacks = callbacks_of(trainer)
    manifest = next(
        (each.path for each in callbacks if isinstance(each, RunManifestFile) and each.path.is_file()), None
    )
    if manifest is not None and (noted := RunManifest.load(manifest).finished_sft) is not None:
        return FinishedSft.from_dict(noted)
    curves = curves_of(trainer)
    steps = trainer.global_step
    # Lightning numbers a validation in training by the step before; ValidateAtEnds by that of the policy.
    loss = [(min(step + 1, steps) if step else 0.0, value) for step, value in curves.get("validation/nll", [])]
    if not loss or not steps:
        return None
    answers: Points = curves.get(ANSWERS, [])
    evaluation = next((each for each in callbacks if isinstance(each, GenerationEvaluation)), None)
    prompts = None if evaluation is None else evaluation.prompt_count
    verdict = judge_finished(loss, _length(trainer, module), answers, prompts)
    if manifest is not None:
        add_to_stage(manifest, module.stage, {FINISHED: verdict.to_dict()})
    return verdict


def _length(trainer: Trainer, module: SupervisedIRL) -> RunLength:
    steps, batches = trainer.global_step, trainer.global_step * trainer.accumulate_grad_batches
    in_epoch = trainer.num_training_batches
    return RunLength(
        steps,
        batches / in_epoch if 0 < in_epoch < float("inf") else None,
        module.schedule.kind != "constant",
        _doubled(trainer, module),
        f"`trainer.check_val_every_n_epoch` null with `trainer.val_check_interval` {max(1, batches // 4)}",
    )


def _doubled(trainer: Trainer, module: SupervisedIRL) -> str:
    """The options with which the run takes twice the steps."""
    epochs, total = trainer.max_epochs, module.schedule.total_steps
    if trainer.global_step != trainer.max_steps and epochs is not None and 0 < epochs <= trainer.current_epoch:
        option = f"`trainer.max_epochs` {2 * epochs}"
        if trainer.limit_train_batches == 1.0:
            option += f" (`dpr sft`: --epochs {2 * epochs})"
    else:
        option = f"`trainer.max_steps` {2 * trainer.global_step}"
    return option if total is None else f"{option} and `model.schedule.total_steps` {2 * total}"
