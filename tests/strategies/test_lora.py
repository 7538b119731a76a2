"""Adapters on a base in shards, and frozen adapters beside the trained one: the same adapters as in one process."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.strategies.launch import run_ranks
from tests.workspace import Workspace, make_workspace, write_dpr_config, write_sft_config

SMALL = {"bucket_size": 5000}
STRATEGIES: dict[str, Any] = {
    "one": "auto",
    "ddp": "ddp",
    "zero2": {"class_path": "dpr_lightning.strategies.Zero2Strategy", "init_args": SMALL},
    "zero3": {
        "class_path": "dpr_lightning.strategies.Zero3Strategy",
        "init_args": {**SMALL, "persistence_threshold": 0},
    },
    "fsdp2": {"class_path": "dpr_lightning.strategies.Fsdp2Strategy"},
}
LORA = {"rank": 4}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def one(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of both stages in one process."""
    return trained("one", workspace, tmp_path_factory.mktemp("one"))


def trained(strategy: str, workspace: Workspace, folder: Path, start: Path | None = None) -> Path:
    """SFT of an adapter, then DPR that goes on with the one of ``start`` (its own, where there is none)."""
    ranks = 1 if strategy == "one" else 2
    sft, dpr = folder / "sft", folder / "dpr"
    policies = (start or folder) / "sft" / "policies"
    for stage in (sft, dpr):
        stage.mkdir()
        if stage == sft:
            policy = {"source": workspace.sft, "lora": LORA}
            config = write_sft_config(stage, policy, workspace.demonstrations, batch_size=4 // ranks)
        else:
            saved = workspace._replace(sft=str(policies / "final"), reference=str(policies / "step_0000001"))
            model = {"policy": {"source": saved.sft, "lora": LORA}, "estimator": "reinforce"}
            config = write_dpr_config(stage, saved, model=model)
        settings = yaml.safe_load(Path(config).read_text())
        kept_policies = {"folder": str(stage / "policies"), "fractions": [0.25]}
        settings["trainer"] |= {
            "strategy": STRATEGIES[strategy],
            "devices": ranks,
            "enable_checkpointing": True,
            "max_steps": 4,
            "gradient_clip_val": 0.5,
            "callbacks": [{"class_path": "dpr_lightning.callbacks.ReferenceCheckpoints", "init_args": kept_policies}],
        }
        Path(config).write_text(yaml.safe_dump(settings))
        run_ranks(["dpr_lightning.cli.main", "fit", "--config", config], ranks, stage / "logs")
    return folder


@pytest.mark.parametrize(
    "strategy", ["zero3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "zero2", "fsdp2"))]
)
def test_adapters_are_those_of_one_process(strategy: str, workspace: Workspace, one: Path, tmp_path: Path) -> None:
    result = trained(strategy, workspace, tmp_path, start=one)
    for stage in ("sft", "dpr"):
        for name in ("step_0000001", "final"):
            first, second = (
                load_file(run / stage / "policies" / name / "adapter_model.safetensors") for run in (one, result)
            )
            assert first.keys() == second.keys()
            assert max(float((first[key] - second[key]).abs().max()) for key in first) < 1e-6
    before = load_file(one / "sft" / "policies" / "final" / "adapter_model.safetensors")
    after = load_file(result / "dpr" / "policies" / "final" / "adapter_model.safetensors")
    assert max(float((before[key] - after[key]).abs().max()) for key in before) > 1e-4
