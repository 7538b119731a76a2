"""A small run folder: a policy, a weaker one of the same vocabulary, and data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from dpr_lightning.policies import PolicySpec, build_policy, save_policy
from tests.tiny import write_tiny_policy


class Workspace(NamedTuple):
    """Folders and files that commands are tried on."""

    sft: str
    reference: str
    prompts: str
    demonstrations: str


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("workspace")
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


@pytest.fixture
def sft_config(tmp_path: Path, workspace: Workspace) -> Callable[..., str]:
    """Writes an SFT config that trains two steps on a data file."""

    def write(train: str, source: str = workspace.sft, **data: Any) -> str:
        config = {
            "model": {
                "class_path": "dpr_lightning.modules.SupervisedIRL",
                "init_args": {"policy": {"source": source}},
            },
            "data": {
                "class_path": "dpr_lightning.data.DemonstrationDataModule",
                "init_args": {"train": train, "batch_size": 4, "cache_dir": str(tmp_path / "cache")} | data,
            },
            "trainer": {"max_steps": 2, **QUIET, "default_root_dir": str(tmp_path)},
        }
        path = tmp_path / "sft.yaml"
        path.write_text(yaml.safe_dump(config))
        return str(path)

    return write


@pytest.fixture
def dpr_config(tmp_path: Path, workspace: Workspace) -> Callable[..., str]:
    """Writes a DPR config that trains two steps."""

    def write(policy: str = workspace.sft, model: dict[str, Any] | None = None, **data: Any) -> str:
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
                "init_args": {"policy": {"source": policy}} | (model or {}),
            },
            "data": {"class_path": "dpr_lightning.data.RewardDataModule", "init_args": arguments | data},
            "trainer": {"max_steps": 2, **QUIET, "default_root_dir": str(tmp_path)},
        }
        path = tmp_path / "dpr.yaml"
        path.write_text(yaml.safe_dump(config))
        return str(path)

    return write


QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
