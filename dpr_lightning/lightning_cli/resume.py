"""``dpr fit`` resumes a run that was interrupted, and refuses checkpoints of a run with other options or data."""

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
"""Name of the file that CSVLogger writes."""
OUTPUTS = {"precomputed"}
"""Folders that a run creates: they exist when it is resumed, and not when it begins."""
# Options that may change when a run is resumed: how steps are computed, not what is learned from.
CHANGEABLE = {
    "optimizer", "schedule", "cache_dir", "token_budget", "gradient_checkpointing", "check_start", "non_finite",
    "frozen_weights", "held_out_file",
}  # fmt: skip
STEP_OPTIONS = {"optimizer", "schedule", "token_budget", "gradient_checkpointing", "non_finite"}
"""Those of them that decide how steps are computed."""
ROWS = re.compile(
    r"data\.(?:init_args\.)?(?:train|validation|test|prompts|exclude|held_out|evaluation)(?:\[\d+\])?(?:\.path)?"
)
"""Options that name rows."""
STEP = ("accumulate_grad_batches", "gradient_clip_val", "precision")
"""Trainer options that change the result of a step."""
IN_SHARDS = (DeepSpeedStrategy, ModelParallelStrategy)
"""Strategies whose state is a folder, with a part for each rank."""


def resume_from(trainer: Trainer, requested: str | None, config: Mapping[str, Any]) -> str | None:
    """The checkpoint that a run resumes from; None where it begins anew.

    Args:
        trainer: with its callbacks.
        requested: ``--ckpt_path``: None takes the newest complete one, if any; ``last`` requires one; ``none`` begins
            anew and moves the old ones aside when training begins; anything else is a path.
        config: of the command, resolved.

    Raises:
        InputError: a checkpoint is required and there is none; or it is of another model, other data or another seed.
    """
    set_template_time(None)
    if is_trial(trainer) and requested in (None, ANEW, LAST):
        return None  # a trial neither reads nor writes the checkpoints of the run
    checkpoints = _checkpoints(trainer)
    if checkpoints is None:
        if requested in (ANEW, LAST):
            raise InputError(
                f"`--ckpt_path {requested}` needs checkpoints, and this run saves none: set "
                "`run.resume_every_n_steps`, and leave `trainer.enable_checkpointing` out."
            )
        return None if requested is None else _existing(Path(requested))
    checkpoints.identity = identity(config)
    checkpoints.step_options = step_options(config)
    if requested == ANEW:
        checkpoints.begins_anew = True
        return None
    store, step = checkpoints.store, None
    if requested not in (None, LAST):
        folder = Path(str(requested))
        if not (folder / STATE).exists() or not re.fullmatch(r"step_\d+", folder.name):
            return _existing(folder)
        store, step = CheckpointStore(folder.parent), int(folder.name.removeprefix("step_"))
        if (fault := store.fault(step)) is not None:
            raise InputError(f"The checkpoint {folder} is damaged: {fault}. Leave `--ckpt_path` out to take another.")
    else:
        step = store.newest()
        if step is None:
            if requested == LAST:
                raise InputError(f"There is no complete checkpoint in {store.folder} to go on from.")
            return None
    _refuse_another_run(store, step, checkpoints.identity, trainer)
    manifest = store.manifest(step)
    checkpoints.changed_options = _changes(
        manifest.get("step_options", checkpoints.step_options), checkpoints.step_options
    )
    continue_wandb_runs(trainer, manifest.get("wandb_runs", []))
    if "template_time" in manifest:
        set_template_time(datetime.fromisoformat(manifest["template_time"]))
    log.warning("Going on after step %d, from %s. `--ckpt_path none` begins anew.", step, store.folder)
    return str(store.state(step))


def what_is_saved(trainer: Trainer) -> str:
    """A sentence on where the same command would go on, for a run that is stopped at once."""
    checkpoints = _checkpoints(trainer)
    if checkpoints is None:
        return how_to_go_on_next_time()
    steps = checkpoints.store.steps()
    if not steps or checkpoints.begins_anew:
        return "There is no checkpoint yet: the same command begins anew."
    return f"The same command goes on from step {steps[0]:,}, in {checkpoints.store.folder}."


def report_replaced_tables(trainer: Trainer) -> None:
    """Log each table of metrics of an earlier run that the new run replaces."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    tables = [Path(logger.log_dir) / METRICS for logger in loggers]
    for table in tables:
        if table.is_file() and is_first_rank():
            log.warning("%s is of an earlier run, and this one replaces it.", table)


def _checkpoints(trainer: Trainer) -> ResumableCheckpoints | None:
    callbacks: list[Any] = callbacks_of(trainer)
    return next((callback for callback in callbacks if isinstance(callback, ResumableCheckpoints)), None)


def evaluate_from(trainer: Trainer, module: LightningModule, requested: str | None) -> str | None:
    """The checkpoint that an evaluation loads; None where the module is created with its weights.

    Args:
        trainer: with its strategy.
        module: whose policy takes the weights of a checkpoint in shards, which Lightning can only load into the ranks
            and the strategy that wrote it, and ZeRO-3's not even there.
        requested: ``--ckpt_path``; the folder of a step means the state in it.

    Raises:
        InputError: the strategy would shard the policy.
    """
    if requested is None:
        return None
    path = Path(requested) / STATE if (Path(requested) / STATE).exists() else Path(requested)
    if not is_in_shards(path):
        return _existing(path)
    if isinstance(trainer.strategy, IN_SHARDS):
        raise InputError(
            f"{path} is in shards and is gathered to be evaluated: leave the overlay of the strategy out, or add "
            "`--trainer.strategy auto` (`ddp` on several devices)."
        )
    policy_module: Any = module
    policy_module.policy_spec = replace(policy_module.policy_spec, checkpoint=str(path))
    return None


def _existing(checkpoint: Path) -> str:
    if not checkpoint.exists():
        raise InputError(
            f"There is no checkpoint {checkpoint}. Without `--ckpt_path`, `dpr fit` takes the newest one of the run."
        )
    return str(checkpoint)


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides whether a run may be resumed: model, data and seed, with the content of the files they name."""
    trainer = config.get("trainer") or {}
    options = {name: config.get(name) for name in ("seed_everything", "model", "data")}
    options["trainer"] = {name: trainer.get(name) for name in STEP}
    flat: dict[str, Any] = {}
    _flatten("", options, flat)
    return flat


def step_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options by which steps are computed, and which may change when a run is resumed."""
    flat: dict[str, Any] = {}

    def add(key_path: str, options: Mapping[str, Any]) -> None:
        for key, value in options.items():
            if key in STEP_OPTIONS:
                _flatten(f"{key_path}.{key}", value, flat)
            elif isinstance(value, Mapping):
                add(f"{key_path}.{key}", value)

    for name in ("model", "data"):
        add(name, config.get(name) or {})
    return flat


def _changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Each option with another value now than then."""
    names = [name for name in dict.fromkeys((*saved, *current)) if saved.get(name) != current.get(name)]
    return [f"{name}: {_difference(saved.get(name), current.get(name))}" for name in names]


def _flatten(key_path: str, value: Any, flat: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in OUTPUTS:
                flat[f"{key_path}.{key}"] = None if inner is None else str(inner)
            elif key not in CHANGEABLE:
                _flatten(f"{key_path}.{key}" if key_path else str(key), inner, flat)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            _flatten(f"{key_path}[{number}]", inner, flat)
    else:
        flat[key_path] = _content(value, rows=ROWS.fullmatch(key_path) is not None)


def _content(value: Any, *, rows: bool) -> Any:
    """A plain value; for a path, a hash of its content, which notices a changed file and ignores a moved one.

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


def _refuse_another_run(store: CheckpointStore, step: int, current: Mapping[str, Any], trainer: Trainer) -> None:
    manifest = store.manifest(step)
    saved = manifest.get("identity") or {}
    lines = [f"  {change}" for change in _changes(saved, current)] if saved else []
    strategy, sharded = type(trainer.strategy).__name__, store.state(step).is_dir()
    if sharded != isinstance(trainer.strategy, IN_SHARDS) or (sharded and manifest.get("strategy") != strategy):
        lines.append(
            f"  strategy: {manifest.get('strategy')} then, {strategy} now, whose states have different formats"
        )
    elif sharded and manifest.get("ranks") != trainer.world_size:
        lines.append(f"  ranks: {manifest.get('ranks')} then, {trainer.world_size} now, and a state in shards")
    if lines:
        raise InputError(
            f"The checkpoints in {store.folder} are of another run:\n" + "\n".join(lines) + "\nSet these as they were; "
            "or begin anew with `--ckpt_path none`; or name another folder: `--output` of `dpr sft`, "
            "`trainer.default_root_dir`, or `folder` of ResumableCheckpoints where the config has it."
        )


def _difference(then: Any, now: Any) -> str:
    """A text with the value then and now; for files and folders, that they differ."""
    content = re.compile(r"(file|folder) ([0-9a-f]+)")
    before, after = (content.fullmatch(value) if isinstance(value, str) else None for value in (then, now))
    if before is None or after is None:
        return f"{_short(then)} then, {_short(now)} now"
    return f"the {after[1]} differs, in its name or its content (hash {before[2][:8]} then, {after[2][:8]} now)"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
