"""What is named instead of a policy's folder is recognised, and the message says what to name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dpr_lightning.cli.main import main
from dpr_lightning.errors import InputError
from dpr_lightning.policies import PolicySpec, build_policy
from tests.training import write_adapter
from tests.workspace import make_workspace, write_resumable_config


def shards_of_deepspeed(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    (folder / "global_step4").mkdir()
    return folder


def shards_of_fsdp(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model_fsdp_0").mkdir()
    return folder


def lightning_shards(folder: Path) -> Path:
    shutil.rmtree(folder)
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "latest").write_text("checkpoint")
    return folder


def lightning_file(folder: Path) -> Path:
    torch.save({}, folder / "last.ckpt")
    return folder / "last.ckpt"


def run_of_trainer(folder: Path) -> Path:
    for step in (10, 2):
        shutil.copytree(folder, folder.parent / "run" / f"checkpoint-{step}")
    return folder.parent / "run"


def run_of_ours(folder: Path) -> Path:
    shutil.copytree(folder, folder.parent / "run" / "sft" / "policies" / "final")
    return folder.parent / "run"


def adapters_of_trainer(folder: Path) -> Path:
    for step in (10, 2):
        write_adapter(folder, folder.parent / "run" / f"checkpoint-{step}")
    return folder.parent / "run"


def without_tokenizer(folder: Path) -> Path:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (shards_of_deepspeed, r"in the shards of DeepSpeed.*zero_to_fp32\.py"),
        (shards_of_fsdp, r"in the shards of FSDP.*accelerate merge-weights .*/pytorch_model_fsdp_0 "),
        (lightning_shards, r"is a checkpoint of Lightning.*Name a folder that the run saved its policy in"),
        (lightning_file, r"is a checkpoint of Lightning.*`dpr export --source BASE --checkpoint .*last\.ckpt "),
        (lambda folder: folder / "model.safetensors", r"is a file of weights alone. Name its folder, .*policy\."),
        (lambda folder: folder / "config.json", "is a file, and a policy is a folder"),
        (run_of_trainer, r"is no policy, but a folder of them: .*/checkpoint-2, .*/checkpoint-10\. Name one"),
        (adapters_of_trainer, r"is no policy, but a folder of them: .*/checkpoint-2, .*/checkpoint-10\. Name one"),
        (run_of_ours, r"is no policy, but a folder of them: .*/run/sft/policies/final\. Name one"),
        (
            without_tokenizer,
            r"No tokenizer could be loaded.*Copy tokenizer\.json and tokenizer_config\.json of its base",
        ),
    ],
)
def test_what_is_no_policy_is_recognised(
    make: Callable[[Path], Path], message: str, tiny_policy_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(tiny_policy_folder, folder)
    with pytest.raises(InputError, match=message):
        build_policy(PolicySpec(source=str(make(folder))))


def test_a_lightning_checkpoint_becomes_a_policy_as_the_message_says(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    assert main(["fit", "--config", write_resumable_config(tmp_path, workspace, workspace.demonstrations)]) == 0
    checkpoint = next((tmp_path / "checkpoints").rglob("*.ckpt"))
    exported = str(tmp_path / "exported")
    command = ["export", "--source", workspace.sft, "--checkpoint", str(checkpoint), "--output", exported]
    assert main(command) == 0
    build_policy(PolicySpec(source=exported))
