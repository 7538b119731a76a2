"""A small folder to try commands on: a policy, a weaker one of the same vocabulary, data, and configs over them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.tiny import write_tiny_policy
from tests.training import QUIET, write_weaker_policy

TRAINER = {**QUIET, "use_distributed_sampler": False}

SAMPLED: dict[str, Any] = {
    "estimator": "reinforce",
    "credit": {"discount": 1.0, "baseline": "leave_one_out"},
    "kl": {"coefficient": 1.0},
}
"""The published estimator, as arguments of DensePathReinforce."""


class Workspace(NamedTuple):
    """Folders and files that commands are tried on."""

    sft: str
    reference: str
    prompts: str
    demonstrations: str


def make_workspace(folder: Path) -> Workspace:
    """Write the policies, and sixteen additions as data."""
    sft = write_tiny_policy(folder / "sft")
    reference = write_weaker_policy(sft, folder / "reference", noise=0.02)
    rows = [
        {"prompt": f"{a} + {b} =", "completion": f"Answer: {a + b}", "answer": str(a + b)}
        for a in range(4)
        for b in range(4)
    ]
    return Workspace(
        str(sft), reference, write_rows(folder / "prompts.jsonl", rows), write_rows(folder / "d.jsonl", rows)
    )


def write_rows(path: Path, rows: list[Any]) -> str:
    """JSON lines; strings go in as they are."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def write_sft_config(
    folder: Path,
    policy: dict[str, Any],
    train: Any,
    model: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    **data: Any,
) -> str:
    """A config that imitates a data file for two steps."""
    data = {"train": train, "validation": None, "batch_size": 4, "cache_dir": str(folder / "cache")} | data
    config = {
        "model": {
            "class_path": "dpr_lightning.modules.SupervisedIRL",
            "init_args": {"policy": policy, **(model or {})},
        },
        "data": {"class_path": "dpr_lightning.data.DemonstrationDataModule", "init_args": data},
        "trainer": {"max_steps": 2, **TRAINER, "default_root_dir": str(folder), **(trainer or {})},
        "run": None,
    }
    return _write(folder / "sft.yaml", config)


def write_pairs_config(
    folder: Path, workspace: Workspace, train: str, model: dict[str, Any] | None = None, **data: Any
) -> str:
    """A config of DPO on a file of pairs for two steps."""
    data = {"train": train, "opponent": workspace.sft, "validation": None, "batch_size": 2} | data
    config = {
        "model": {
            "class_path": "dpr_lightning.modules.SelfPlay",
            "init_args": {"policy": {"source": workspace.sft}, "loss": "dpo", **(model or {})},
        },
        "data": {
            "class_path": "dpr_lightning.data.PreferenceDataModule",
            "init_args": {"cache_dir": str(folder / "cache"), **data},
        },
        "trainer": {"max_steps": 2, **TRAINER, "default_root_dir": str(folder)},
        "run": None,
    }
    return _write(folder / "pairs.yaml", config)


def write_resumable_config(
    folder: Path, workspace: Workspace, train: str, trainer: dict[str, Any] | None = None, **data: Any
) -> str:
    """A config like :func:`write_sft_config`, whose checkpoints in ``folder``/checkpoints resume it."""
    checkpoints = {
        "class_path": "dpr_lightning.callbacks.ResumableCheckpoints",
        "init_args": {"folder": str(folder / "checkpoints")},
    }
    options = {"callbacks": [checkpoints], "enable_checkpointing": True, **(trainer or {})}
    return write_sft_config(folder, {"source": workspace.sft}, train, trainer=options, **data)


def write_dpr_config(
    folder: Path,
    workspace: Workspace,
    policy: str | None = None,
    model: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    **data: Any,
) -> str:
    """A config that takes two steps of DPR."""
    arguments = {
        "prompts": workspace.prompts,
        "sft": workspace.sft,
        "references": [workspace.reference],
        "sampling": {"max_new_tokens": 6},
        "samples_per_prompt": 2,
        "prompts_per_rollout": 4,
    }
    config = {
        "model": {
            "class_path": "dpr_lightning.modules.DensePathReinforce",
            "init_args": {"policy": {"source": policy or workspace.sft}, **SAMPLED} | (model or {}),
        },
        "data": {"class_path": "dpr_lightning.data.RewardDataModule", "init_args": arguments | data},
        "trainer": {"max_steps": 2, **TRAINER, "default_root_dir": str(folder), **(trainer or {})},
        "run": None,
    }
    return _write(folder / "dpr.yaml", config)


def _write(path: Path, config: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(config))
    return str(path)
