"""``dpr fit`` goes on where the same command was interrupted, and refuses to go on as something else."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy

from dpr_lightning.callbacks import ResumableCheckpoints
from dpr_lightning.callbacks.checkpoint_store import STATE, CheckpointStore
from dpr_lightning.callbacks.run_ends import how_to_go_on_next_time
from dpr_lightning.callbacks.wandb_logger import continue_wandb_runs
from dpr_lightning.data.rows import local_files
from dpr_lightning.data.template_clock import set_template_time
from dpr_lightning.errors import InputError
from dpr_lightning.locking import is_first_rank
from dpr_lightning.policies import is_in_shards
from dpr_lightning.rewards.cache import content_hash, policy_hash
from dpr_lightning.trainer_attributes import callbacks_of, is_trial

log = logging.getLogger(__name__)
ANEW, LAST = "none", "last"
METRICS = "metrics.csv"
"""What CSVLogger writes."""
OUTPUTS = {"precomputed"}
"""Folders that a run makes itself: there when it goes on, and not when it began."""
# What may change between an interruption and the run that goes on: how steps are taken, not what is learned from.
CHANGEABLE = {
    "optimizer", "schedule", "cache_dir", "token_budget", "gradient_checkpointing", "check_start", "non_finite",
    "frozen_weights",
}  # fmt: skip
ROWS = re.compile(r"data\.(?:init_args\.)?(?:train|validation|test|prompts|held_out|evaluation)(?:\[\d+\])?(?:\.path)?")
"""Options that name rows."""
STEP = ("accumulate_grad_batches", "gradient_clip_val", "precision")
"""What of the trainer makes a step what it is."""
IN_SHARDS = (DeepSpeedStrategy, ModelParallelStrategy)
"""Strategies whose state is a folder, with a part for each rank."""


def resume_from(trainer: Trainer, asked: str | None, config: Mapping[str, Any]) -> str | None:
    """The checkpoint that a run goes on from; None where it begins.

    Args:
        trainer: with its callbacks.
        asked: ``--ckpt_path``: None finds the newest whole one, ``last`` demands one, ``none`` begins anew and has
            the old ones put aside when training begins, anything else is a path.
        config: of the command, resolved.

    Raises:
        InputError: there is none although one was demanded; or it is of another model, other data or another seed.
    """
    set_template_time(None)
    if is_trial(trainer) and asked in (None, ANEW, LAST):
        return None  # a trial, which neither reads nor writes the checkpoints of the run
    kept = _checkpoints(trainer)
    if kept is None:
        if asked in (ANEW, LAST):
            raise InputError(f"`--ckpt_path {asked}` needs the callback ResumableCheckpoints, which this config lacks.")
        return None if asked is None else _existing(Path(asked))
    kept.identity = identity(config)
    if asked == ANEW:
        kept.begins_anew = True
        return None
    store, step = kept.store, None
    if asked not in (None, LAST):
        folder = Path(str(asked))
        if not (folder / STATE).exists() or not re.fullmatch(r"step_\d+", folder.name):
            return _existing(folder)
        store, step = CheckpointStore(folder.parent), int(folder.name.removeprefix("step_"))
        if (fault := store.fault(step)) is not None:
            raise InputError(f"The checkpoint {folder} is damaged: {fault}. Leave `--ckpt_path` out to take another.")
    else:
        step = store.newest()
        if step is None:
            if asked == LAST:
                raise InputError(f"There is no whole checkpoint in {store.folder} to go on from.")
            return None
    _refuse_another_run(store, step, kept.identity, trainer)
    manifest = store.manifest(step)
    continue_wandb_runs(trainer, manifest.get("wandb_runs", []))
    if "template_time" in manifest:
        set_template_time(datetime.fromisoformat(manifest["template_time"]))
    log.warning("Going on after step %d, from %s. `--ckpt_path none` begins anew.", step, store.folder)
    return str(store.state(step))


def what_is_saved(trainer: Trainer) -> str:
    """What the same command does after this one was stopped at once."""
    checkpoints = _checkpoints(trainer)
    if checkpoints is None:
        return how_to_go_on_next_time(trainer)
    steps = checkpoints.store.steps()
    if not steps or checkpoints.begins_anew:
        return "There is no checkpoint yet: the same command begins anew."
    return f"The same command goes on from step {steps[0]:,}, in {checkpoints.store.folder}."


def report_replaced_tables(trainer: Trainer) -> None:
    """Name each table of metrics of an earlier run that a new one replaces."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    tables = [Path(logger.log_dir) / METRICS for logger in loggers]
    for table in tables:
        if table.is_file() and is_first_rank():
            log.warning("%s is of an earlier run, and this one replaces it.", table)


def _checkpoints(trainer: Trainer) -> ResumableCheckpoints | None:
    callbacks: list[Any] = callbacks_of(trainer)
    return next((callback for callback in callbacks if isinstance(callback, ResumableCheckpoints)), None)


def evaluate_from(trainer: Trainer, module: LightningModule, asked: str | None) -> str | None:
    """The checkpoint that an evaluation loads; None where the module is made with its weights.

    Args:
        trainer: with its strategy.
        module: whose policy takes the weights of a checkpoint in shards, which Lightning can only load into the ranks
            and the strategy that wrote it, and ZeRO-3's not even there.
        asked: ``--ckpt_path``; the folder of a step stands for the state in it.

    Raises:
        InputError: the strategy would hold the policy in shards.
    """
    if asked is None:
        return None
    path = Path(asked) / STATE if (Path(asked) / STATE).exists() else Path(asked)
    if not is_in_shards(path):
        return _existing(path)
    if isinstance(trainer.strategy, IN_SHARDS):
        raise InputError(
            f"{path} is in shards and is gathered to be evaluated: leave the overlay of the strategy out, or add "
            "`--trainer.strategy auto` (`ddp` on several devices)."
        )
    held: Any = module
    held.policy_spec = replace(held.policy_spec, checkpoint=str(path))
    return None


def _existing(checkpoint: Path) -> str:
    if not checkpoint.exists():
        raise InputError(f"There is no checkpoint {checkpoint}. `dpr fit` finds its own without `--ckpt_path`.")
    return str(checkpoint)


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run this run and not another: model, data and seed, with the content of the files they name."""
    trainer = config.get("trainer") or {}
    held = {name: config.get(name) for name in ("seed_everything", "model", "data")}
    held["trainer"] = {name: trainer.get(name) for name in STEP}
    flat: dict[str, Any] = {}
    _flatten("", held, flat)
    return flat


def _flatten(place: str, value: Any, flat: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in OUTPUTS:
                flat[f"{place}.{key}"] = None if inner is None else str(inner)
            elif key not in CHANGEABLE:
                _flatten(f"{place}.{key}" if place else str(key), inner, flat)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            _flatten(f"{place}[{number}]", inner, flat)
    else:
        flat[place] = _content(value, rows=ROWS.fullmatch(place) is not None)


def _content(value: Any, *, rows: bool) -> Any:
    """A plain value; of a path, what is there, so that a file that has changed is noticed and one that moved is not.

    Args:
        value: of an option.
        rows: the option names rows, so that its value may be a pattern of files.
    """
    if not isinstance(value, (str, Path)):
        return value if isinstance(value, (int, float, type(None))) else str(value)
    path = Path(value)
    if rows and not path.exists() and (files := local_files(value)):
        return f"{len(files)} files {' '.join(content_hash(file)[:16] for file in files)}"
    if path.is_dir():
        return f"folder {(content_hash(path, local_files(path)) if rows else policy_hash(path))[:16]}"
    return f"file {content_hash(path)[:16]}" if path.is_file() else str(value)


def _refuse_another_run(store: CheckpointStore, step: int, own: Mapping[str, Any], trainer: Trainer) -> None:
    manifest = store.manifest(step)
    held = manifest.get("identity") or {}
    names = [name for name in dict.fromkeys((*held, *own)) if held.get(name) != own.get(name)] if held else []
    lines = [f"  {name}: {_difference(held.get(name), own.get(name))}" for name in names]
    strategy, sharded = type(trainer.strategy).__name__, store.state(step).is_dir()
    if sharded != isinstance(trainer.strategy, IN_SHARDS) or (sharded and manifest.get("strategy") != strategy):
        lines.append(f"  strategy: {manifest.get('strategy')} then, {strategy} now, which keep their state differently")
    elif sharded and manifest.get("ranks") != trainer.world_size:
        lines.append(f"  ranks: {manifest.get('ranks')} then, {trainer.world_size} now, and a state in shards")
    if lines:
        raise InputError(
            f"The checkpoints in {store.folder} are of another run:\n" + "\n".join(lines) + "\nSet these as they were; "
            "or begin anew with `--ckpt_path none`; or name another folder for ResumableCheckpoints."
        )


def _difference(then: Any, now: Any) -> str:
    """A value then and now; of files and folders, that they differ."""
    content = re.compile(r"(file|folder) ([0-9a-f]+)")
    before, after = (content.fullmatch(value) if isinstance(value, str) else None for value in (then, now))
    if before is None or after is None:
        return f"{_short(then)} then, {_short(now)} now"
    return f"the {after[1]} differs, in its name or its content (hash {before[2][:8]} then, {after[2][:8]} now)"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
