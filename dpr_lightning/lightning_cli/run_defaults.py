"""The `run:` section of a config: loggers, checkpoints and samples that a run has without naming their classes."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loggers import CSVLogger

from dpr_lightning.callbacks import (
    BestPolicy,
    HeldOutReward,
    ReferenceCheckpoints,
    ResumableCheckpoints,
    RolloutSamples,
    RunManifestFile,
    ValidateAtEnds,
    WandbLogger,
)
from dpr_lightning.data import DemonstrationDataModule, PolicyDataModule, RewardDataModule
from dpr_lightning.data.held_out import AUTO
from dpr_lightning.errors import InputError
from dpr_lightning.modules import RolloutAlgorithm
from dpr_lightning.modules.base import PolicyModule
from dpr_lightning.paths import import_class
from dpr_lightning.run_manifest import MANIFEST

log = logging.getLogger(__name__)
ROOT = "trainer.default_root_dir"
RUNS = Path("runs")
"""Folder of the runs whose config leaves ``trainer.default_root_dir`` out."""


@dataclass
class RunDefaults:
    """What a run writes to ``trainer.default_root_dir``, beside its policy at the end. A callback of the same class in
    ``trainer.callbacks``, and ``trainer.logger``, are used instead of these.

    Args:
        references: shares of the run, in (0, 1), at which the policy is saved too. None: those of the module, which for
            imitation are 0.25, 0.5 and 0.75, and otherwise none.
        resume_every_n_steps: optimizer steps between checkpoints, from which the same command resumes. None: no
            checkpoints.
        keep_checkpoints: number of the newest checkpoints that stay.
        samples_every_n_rollouts: rollouts between saved samples, for rollout algorithms. None: no samples.
        verifier: name, or ``module:function``, of what scores these samples, and answers in later commands. None: no
            scores.
        held_out_every_n_steps: optimizer steps between measurements of the reward on ``data.held_out``, for rollout
            algorithms. None: no measurements.
        held_out_limit: number of the first demonstrations of ``data.held_out`` that are measured.
        validate_at_ends: whether the validation set is evaluated before the first step and after the last, also where
            the trainer validates at other times.
        best: whether the policy with the best validation is saved to ``policies/best`` too.
        early_stopping: number of validations in a row without a better one after which the run ends. None: it does not.
        manifest: file that names the policies and data of the run, for the option ``--run`` of other commands; stages
            of one run share it. None: ``run.json`` in the folder.
        csv: whether metrics are written to ``metrics.csv``.
        wandb: whether metrics go to Weights & Biases: ``online``; ``offline``, to files in the folder around the run's;
            ``auto``, online where this machine has a key of an account. ``off``, which YAML reads as false: they do
            not.
        wandb_project: project of the Weights & Biases run, whose name is the folder's path.

    Raises:
        InputError: a number is out of range.
    """

    references: list[float] | None = None
    resume_every_n_steps: int | None = 50
    keep_checkpoints: int = 2
    samples_every_n_rollouts: int | None = 20
    verifier: str | None = None
    held_out_every_n_steps: int | None = 10
    held_out_limit: int = 64
    validate_at_ends: bool = True
    best: bool = False
    early_stopping: int | None = None
    manifest: str | None = None
    csv: bool = True
    wandb: Literal["auto", "offline", "online", "off"] | bool = "auto"
    wandb_project: str = "dpr-lightning"

    def __post_init__(self) -> None:
        """Check the ranges."""
        for share in self.references or ():
            if not 0 < share < 1 or math.isnan(share):
                raise InputError(
                    f"`run.references`: found {share:g}. They are shares of the run between 0 and 1, such as 0.25; the "
                    "end of the run is always saved."
                )
        if self.wandb is True:
            raise InputError("`run.wandb`: found true. It is `auto`, `offline`, `online` or `off`.")
        optional = {
            "resume_every_n_steps": self.resume_every_n_steps,
            "samples_every_n_rollouts": self.samples_every_n_rollouts,
            "held_out_every_n_steps": self.held_out_every_n_steps,
            "early_stopping": self.early_stopping,
        }
        required = {"keep_checkpoints": self.keep_checkpoints, "held_out_limit": self.held_out_limit}
        for name, value in (optional | required).items():
            if value is not None and value < 1:
                off = "; null switches it off" if name in optional else ""
                raise InputError(f"`run.{name}`: found {value}. It is at least 1{off}.")


class Default(NamedTuple):
    """A callback or logger that the `run:` section stands for."""

    kind: type
    options: dict[str, Any]

    def entry(self) -> dict[str, Any]:
        """The same as a config names it."""
        return {"class_path": f"{self.kind.__module__}.{self.kind.__qualname__}", "init_args": self.options}


class RunParts(NamedTuple):
    """What a `run:` section adds to what the config names.

    ``held_out_file``: option of the DataModule, a path in the run's folder, and so no part of the saved config; None
    where the DataModule has no such option, the config sets it, or no rows are held out.
    """

    callbacks: list[Default]
    loggers: list[Default]
    held_out_file: str | None = None

    def entries(self) -> dict[str, Any]:
        """The same as options of a trainer."""
        return {
            "callbacks": [default.entry() for default in self.callbacks],
            "logger": [default.entry() for default in self.loggers],
        }

    def trainer_options(self, trainer: Mapping[str, Any]) -> dict[str, Any]:
        """Create the callbacks and loggers.

        Args:
            trainer: options of the trainer, with the callbacks and loggers that the config names.

        Returns:
            The options to change. Lightning's own logger and checkpoints, which it adds where there are none, are off.
        """
        callbacks = _listed(trainer.get("callbacks"))
        added = [default.kind(**default.options) for default in self.callbacks]
        # A policy is saved before slower callbacks at the end of the run, and with the average that one puts into it.
        averages = [
            index
            for index, callback in enumerate(callbacks, start=1)
            if isinstance(callback, (StochasticWeightAveraging, WeightAveraging))
        ]
        first = max(averages, default=0)
        options: dict[str, Any] = {"callbacks": [*callbacks[:first], *added, *callbacks[first:]]}
        if trainer.get("logger") is None:
            options["logger"] = [default.kind(**default.options) for default in self.loggers] or False
        saves = any(isinstance(callback, Checkpoint) for callback in options["callbacks"])
        if trainer.get("enable_checkpointing") is None and not saves:
            options["enable_checkpointing"] = False
        return options


def settle_run(config: Namespace, config_files: Sequence[Path]) -> bool:
    """Set the options that depend on others: the folder of the run, its references, who distributes the samples.

    Args:
        config: of a LightningCLI command, parsed; changed in place.
        config_files: that it was read from.

    Returns:
        Whether the folder was left out.
    """
    data, module = _class_of(config.get("data")), _class_of(config.get("model"))
    if issubclass(data, PolicyDataModule):
        config["trainer.use_distributed_sampler"] = False  # each rank reads its share of the rows itself
    run = config.get("run")
    if run is None:
        return False
    run = run.get("init_args", run)  # the parser's own form, until the whole config is parsed
    if run.get("references") is None:
        run["references"] = list(module.reference_fractions) if issubclass(module, PolicyModule) else []
    left_out = config.get(ROOT) is None
    if left_out:
        config[ROOT] = str(RUNS / (config_files[0].stem if config_files else "fit"))
    return left_out


def parts_of_run(config: Mapping[str, Any], subcommand: str) -> RunParts:
    """What the `run:` section of a settled config stands for, without what the config names itself.

    Args:
        config: of a LightningCLI command.
        subcommand: ``fit``; others have the loggers alone.

    Raises:
        InputError: a number of the section is out of range.
    """
    trainer = config["trainer"]
    if config.get("run") is None or trainer.get("barebones"):  # with which Lightning refuses loggers and checkpoints
        return RunParts([], [])
    run = RunDefaults(**config["run"])
    root = Path(trainer["default_root_dir"]).expanduser()
    loggers = _loggers(run, root, subcommand) if trainer.get("logger") is None else []
    if subcommand != "fit":
        return RunParts([], loggers)
    named = [kind for entry in _listed(trainer.get("callbacks")) if (kind := import_class(entry)) is not None]
    return RunParts(
        [
            default
            for default in _callbacks(run, root, config)
            if not any(issubclass(kind, default.kind) for kind in named)
        ],
        loggers,
        str(root / "held_out.jsonl") if _holds_out(config) else None,
    )


def _holds_out(config: Mapping[str, Any]) -> bool:
    """Whether rows are held out of those to learn from, and the config names no file for them."""
    data = _class_of(config.get("data"))
    if not issubclass(data, PolicyDataModule):
        return False
    options = config["data"].get("init_args") or {}
    return data.splits_off_rows(options) and options.get("held_out_file") is None


def _callbacks(run: RunDefaults, root: Path, config: Mapping[str, Any]) -> Iterable[Default]:
    module, data = _class_of(config.get("model")), _class_of(config.get("data"))
    if issubclass(module, PolicyModule):
        yield Default(ReferenceCheckpoints, {"folder": str(root / "policies"), "fractions": run.references})
    if run.validate_at_ends and not issubclass(data, RewardDataModule):  # which has no validation
        yield Default(ValidateAtEnds, {})
    if run.best or run.early_stopping is not None:
        monitor, mode = _selection_metric(config, "run.best" if run.best else "run.early_stopping")
        compared = {"monitor": monitor, "mode": mode}
        if run.best:
            yield Default(BestPolicy, {"folder": str(root / "policies"), **compared})
        if run.early_stopping is not None:
            patience = {"patience": run.early_stopping, "check_on_train_epoch_end": False}
            yield Default(EarlyStopping, {**compared, **patience})
    if issubclass(module, RolloutAlgorithm) and issubclass(data, RewardDataModule):
        if run.samples_every_n_rollouts is not None:
            options = {"every_n_rollouts": run.samples_every_n_rollouts, "verifier": run.verifier}
            yield Default(RolloutSamples, {"folder": str(root), **options})
        held_out = (config["data"].get("init_args") or {}).get("held_out")
        if run.held_out_every_n_steps is not None and held_out is not None:
            yield Default(HeldOutReward, {"every_n_steps": run.held_out_every_n_steps, "limit": run.held_out_limit})
    if run.resume_every_n_steps is not None and config["trainer"].get("enable_checkpointing") is not False:
        options = {"every_n_steps": run.resume_every_n_steps, "keep": run.keep_checkpoints}
        yield Default(ResumableCheckpoints, {"folder": str(root / "checkpoints"), **options})
    if issubclass(module, PolicyModule):
        yield Default(RunManifestFile, {"path": run.manifest or str(root / MANIFEST), "verifier": run.verifier})


def _selection_metric(config: Mapping[str, Any], option: str) -> tuple[str, str]:
    """The metric of validation by which policies are compared, and whether less or more is better.

    Raises:
        InputError: the run has no validation.
    """
    module, data = _class_of(config.get("model")), _class_of(config.get("data"))
    metric = module.selection_metric if issubclass(module, PolicyModule) else None
    if metric is None:
        raise InputError(
            f"`{option}` compares policies by their validation, and {module.__name__} has none. Leave it out."
        )
    options = (config["data"] or {}).get("init_args") or {}
    without_rows = issubclass(data, DemonstrationDataModule) and options.get("validation", AUTO) is None
    if without_rows or config["trainer"].get("limit_val_batches") == 0:
        raise InputError(
            f"`{option}` compares policies by {metric[0]}, and this run has no validation. Set `data.validation` to a "
            "file, a share or `auto`, and leave `trainer.limit_val_batches` above 0."
        )
    return metric


def _loggers(run: RunDefaults, root: Path, subcommand: str) -> list[Default]:
    version = "" if subcommand == "fit" else subcommand  # an evaluation does not replace the metrics of the training
    loggers = [Default(CSVLogger, {"save_dir": str(root), "name": "", "version": version})] if run.csv else []
    if run.wandb not in (False, "off"):
        name = "-".join([part for part in root.relative_to(root.anchor).parts if part != RUNS.name][-3:])
        options = {"project": run.wandb_project, "name": name or None}
        offline = None if run.wandb == "auto" else run.wandb == "offline"
        loggers.append(Default(WandbLogger, {**options, "save_dir": str(root.parent), "offline": offline}))
    return loggers


def _class_of(entry: Any) -> type:
    """The class that a config names; ``object`` where there is none of that name."""
    return (import_class(entry) if entry is not None and "class_path" in entry else None) or object


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
