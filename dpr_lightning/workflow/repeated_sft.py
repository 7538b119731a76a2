"""The config of an SFT that repeats that of a run on other rows: folds of them, or a copy with planted mistakes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dpr_lightning.errors import InputError
from dpr_lightning.paths import Reads, path_uses
from dpr_lightning.run_manifest import RunManifest
from dpr_lightning.workflow.config_settings import Config, apply_setting

CHANGED_DATA: Config = {"validation": None, "test": None, "limit": None, "cache_dir": None, "held_out_file": None}
"""The rows are those to learn from, and nothing is validated."""
CHANGED_TRAINER: Config = {
    "strategy": "auto",
    "devices": 1,
    "num_nodes": 1,
    "max_epochs": None,
    "min_epochs": None,
    "min_steps": None,
    "max_time": None,
    "limit_train_batches": None,
    "limit_val_batches": 0,
    "val_check_interval": None,
    "check_val_every_n_epoch": 1,
    "callbacks": [],
    "logger": None,
    "plugins": None,
}
"""One device, no validation, and no callbacks or loggers, which would write to the folders of the run."""


def repeated_sft(
    manifest: RunManifest, rows: Path, folder: Path, *, steps: int, references: Sequence[float] = ()
) -> Config:
    """The config of `dpr fit` that trains by the recipe of a run's SFT: its policy, loss, optimizer and batches.

    Args:
        manifest: of the run.
        rows: file to learn from, with the columns of the run's rows.
        folder: of the training.
        steps: of the optimizer.
        references: shares of the training at which the policy is saved too.

    Raises:
        InputError: the run's config was not saved, or its data are not read from `train`.
    """
    path = manifest.sft_config
    config: Config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section in ("model", "data"):
        if not isinstance((config.get(section) or {}).get("init_args"), dict):
            raise InputError(f"{path} has no `{section}.init_args`, and is no config of SFT that can be repeated.")
        _make_absolute(config, section, manifest.sft_folder)
    data = config["data"]["init_args"]
    if "train" not in data:
        raise InputError(
            f"{path}: the DataModule {config['data'].get('class_path')} has no option `train`, so that SFT cannot be "
            "repeated on other rows."
        )
    data |= {name: value for name, value in CHANGED_DATA.items() if name in data} | {"train": str(rows)}
    model = config["model"]["init_args"]
    model["policy"] = manifest.policy_options
    if isinstance(model.get("schedule"), dict):
        model["schedule"]["total_steps"] = None
    trainer = config.get("trainer") or {}
    config["trainer"] = {
        **trainer,
        **CHANGED_TRAINER,
        "accumulate_grad_batches": _ranks(trainer) * (trainer.get("accumulate_grad_batches") or 1),
        "max_steps": steps,
        "default_root_dir": str(folder),
    }
    config["run"] = {
        "references": list(references),
        "keep_checkpoints": 1,
        "validate_at_ends": False,
        "wandb": False,
    }
    return {name: config[name] for name in ("seed_everything", "model", "data", "trainer", "run") if name in config}


def _make_absolute(config: Config, section: str, folder: Path) -> None:
    """Replace relative paths that a section reads, such as ``data.chat_template``, by those in a working directory."""
    for use in list(path_uses(Any, config[section], section)):
        absolute = folder / use.path
        if isinstance(use.use, Reads) and "[" not in use.option and not use.path.is_absolute() and absolute.exists():
            apply_setting(config, use.option, str(absolute))


def _ranks(trainer: Mapping[str, Any]) -> int:
    """The processes among which the run divided a step, where the config has their number."""
    counts = (trainer.get("devices"), trainer.get("num_nodes"))
    devices, nodes = (count if isinstance(count, int) and count > 0 else 1 for count in counts)
    return devices * nodes
