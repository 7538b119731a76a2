"""Every path that a LightningCLI command reads or writes, those of Lightning's loggers and callbacks included."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from dpr_lightning.callbacks.rollout_samples import SAMPLES, RolloutSamples
from dpr_lightning.lightning_cli.path_checks import CHECKPOINT
from dpr_lightning.lightning_cli.run_defaults import ROOT
from dpr_lightning.paths import PathUse, Reads, Writes, import_class, path_uses

SAVED_CONFIG = Writes("config.yaml", marks=("# lightning.pytorch==",))
"""The config that is saved with each run."""
OWN_FOLDER = (CSVLogger, TensorBoardLogger)
"""Loggers that write to a folder of one run; others write to one that runs share."""


def uses_of_run(config: Mapping[str, Any], subcommand: str, parts: Mapping[str, Any]) -> list[PathUse]:
    """Every path that a LightningCLI command reads or writes.

    Args:
        config: of the command, parsed and not yet instantiated.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``; all but ``fit`` write only logs and caches.
        parts: ``callbacks`` and ``logger`` that the `run:` section adds, which write where ``trainer.default_root_dir``
            is.
    """
    trainer = config.get("trainer") or {}
    uses = [use for name in ("model", "data", "trainer") for use in path_uses(Any, config.get(name), name)]
    uses += [replace(use, option=ROOT) for use in path_uses(Any, parts, ROOT)]
    checkpoint = config.get(CHECKPOINT)
    if checkpoint not in (None, "none", "last"):
        uses.append(PathUse(CHECKPOINT, Path(os.path.expanduser(checkpoint)), Reads()))
    if subcommand != "fit":
        uses = [use for use in uses if isinstance(use.use, Reads) or use.use.shared]
    added = _written_by_lightning({**parts, "default_root_dir": trainer.get("default_root_dir")}, subcommand)
    uses += [*_written_by_lightning(trainer, subcommand), *(replace(use, option=ROOT) for use in added)]
    loggers = [*_entries(trainer.get("logger")), *_entries(parts["logger"])]
    in_root = trainer.get("logger") is not True and not any(_is(logger, OWN_FOLDER) for logger in loggers)
    if subcommand == "fit" and saves_config(config) and in_root:
        uses.append(PathUse(ROOT, _root(trainer), SAVED_CONFIG))
    return uses


def saves_config(config: Mapping[str, Any]) -> bool:
    """Whether the run saves its config: not with `run: null` and without loggers, where it writes nothing."""
    return config.get("run") is not None or bool((config.get("trainer") or {}).get("logger"))


def _root(trainer: Mapping[str, Any]) -> Path:
    return Path(trainer.get("default_root_dir") or ".").expanduser()


def separate_evaluation_logs(config: Namespace, subcommand: str) -> None:
    """Direct the metrics of an evaluation to a folder with its name, since the training's would be overwritten.

    Args:
        config: of the command, parsed; changed in place.
        subcommand: as for :func:`uses_of_run`.
    """
    for logger in _entries((config.get("trainer") or {}).get("logger")):
        arguments = logger.get("init_args") or {}
        if subcommand != "fit" and _is(logger, CSVLogger) and isinstance(arguments.get("version"), str):
            arguments["version"] = os.path.join(arguments["version"], subcommand)


def _written_by_lightning(trainer: Mapping[str, Any], subcommand: str) -> Iterator[PathUse]:
    """Paths that Lightning's loggers and callbacks write, which their parameters do not declare."""
    root = _root(trainer)
    yield PathUse(ROOT, root, Writes("non_finite.jsonl", "micro_batches.json", shared=True))
    if trainer.get("logger") is True:
        yield PathUse(ROOT, _next_version(root / "lightning_logs"), Writes(shared=True))
    for logger in _entries(trainer.get("logger")):
        yield from _written_by_logger(logger, root, subcommand)
    for callback in _entries(trainer.get("callbacks")) if subcommand == "fit" else []:
        arguments = callback.get("init_args") or {}
        if _is(callback, ModelCheckpoint) and arguments.get("dirpath"):
            yield PathUse("ModelCheckpoint.dirpath", Path(arguments["dirpath"]), Writes("*.ckpt", resumes=True))
        if _is(callback, RolloutSamples) and not arguments.get("folder"):
            yield PathUse(ROOT, root / SAMPLES.names[0], Writes(marks=SAMPLES.marks))


def _written_by_logger(logger: Any, root: Path, subcommand: str) -> Iterator[PathUse]:
    arguments = logger.get("init_args") or {}
    option = str(logger["class_path"]).rpartition(".")[2] + ".save_dir"
    folder = Path(arguments.get("save_dir") or root)
    if not _is(logger, Logger):
        return
    if not _is(logger, OWN_FOLDER):
        # They add files with names of each run.
        yield PathUse(option, folder / ("wandb" if _is(logger, WandbLogger) else ".new"), Writes(shared=True))
        return
    folder /= arguments.get("name", "lightning_logs") or ""
    version = arguments.get("version")
    if version is None:
        yield PathUse(option, _next_version(folder), Writes(shared=True))
        return
    folder /= version if isinstance(version, str) else f"version_{version}"
    if _is(logger, CSVLogger):
        yield PathUse(option, folder, Writes("metrics.csv", marks=("step",)))
        yield PathUse(option, folder, Writes("hparams.yaml", marks=("command: dpr ",)))
    if subcommand == "fit":
        yield PathUse(option, folder, SAVED_CONFIG)


def _next_version(folder: Path) -> Path:
    return next(path for number in count() if not (path := folder / f"version_{number}").exists())


def _entries(value: Any) -> list[Any]:
    """The classes that an option names, each a mapping with ``class_path``."""
    several = value if isinstance(value, (list, tuple)) else [value]
    return [entry for entry in several if isinstance(entry, (Mapping, Namespace)) and "class_path" in entry]


def _is(entry: Any, kind: type | tuple[type, ...]) -> bool:
    imported = import_class(entry)
    return imported is not None and issubclass(imported, kind)
