"""A small folder to try commands on: a policy, a weaker one of the same vocabulary, data, and configs over them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from dpr_lightning.policies import PolicySpec, build_policy, save_policy
from tests.tiny import write_tiny_policy

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


class Workspace(NamedTuple):
    """Folders and files that commands are tried on."""

    sft: str
    reference: str
    prompts: str
    demonstrations: str


def make_workspace(folder: Path) -> Workspace:
    """Write the policies, and sixteen additions as data."""
    sft = write_tiny_policy(folder / "sft")
    spec = PolicySpec(source=str(sft))
    model, tokenizer = build_policy(spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    reference = save_policy(model, tokenizer, folder / "reference", spec)
    rows = [
        {"prompt": f"{a} + {b} =", "completion": f"Answer: {a + b}", "answer": str(a + b)}
        for a in range(4)
        for b in range(4)
    ]
    return Workspace(
        str(sft), str(reference), write_rows(folder / "prompts.jsonl", rows), write_rows(folder / "d.jsonl", rows)
    )


def write_rows(path: Path, rows: list[Any]) -> str:
    """JSON lines; strings go in as they are."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def write_sft_config(
    folder: Path,
    policy: dict[str, Any],
    train: str,
    model: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    **data: Any,
) -> str:
    """A config that imitates a data file for two steps."""
    data = {"train": train, "batch_size": 4, "cache_dir": str(folder / "cache")} | data
    config = {
        "model": {
            "class_path": "dpr_lightning.modules.SupervisedIRL",
            "init_args": {"policy": policy, **(model or {})},
        },
        "data": {"class_path": "dpr_lightning.data.DemonstrationDataModule", "init_args": data},
        "trainer": {"max_steps": 2, **QUIET, "default_root_dir": str(folder), **(trainer or {})},
    }
    return _write(folder / "sft.yaml", config)


def write_dpr_config(
    folder: Path, workspace: Workspace, policy: str | None = None, model: dict[str, Any] | None = None, **data: Any
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
            "init_args": {"policy": {"source": policy or workspace.sft}} | (model or {}),
        },
        "data": {"class_path": "dpr_lightning.data.RewardDataModule", "init_args": arguments | data},
        "trainer": {"max_steps": 2, **QUIET, "default_root_dir": str(folder)},
    }
    return _write(folder / "dpr.yaml", config)


def _write(path: Path, config: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(config))
    return str(path)
