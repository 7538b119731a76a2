"""``dtype: auto``: as the weights are saved, where this machine computes in it, for every reader of a folder."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from dpr_lightning.cli.main import main
from dpr_lightning.cli.plan_command import plan
from dpr_lightning.data import RewardDataModule
from dpr_lightning.policies import AUTO, FrozenPolicies, LoraSpec, PolicySpec, build_policy, save_policy, weights_dtype
from dpr_lightning.policies.outline import outline_policy
from dpr_lightning.policies.verifier_model import build_verifier_head
from dpr_lightning.policies.weights_dtype import automatic_dtype
from dpr_lightning.workflow import BaseModel
from tests.tiny import write_tiny_policy
from tests.workspace import make_workspace, write_sft_config


@pytest.fixture
def half(tmp_path: Path) -> str:
    """A policy whose weights are saved in bfloat16."""
    spec = PolicySpec(source=str(write_tiny_policy(tmp_path / "base")), dtype="bfloat16")
    return str(save_policy(*build_policy(spec), tmp_path / "half", spec))


@pytest.fixture(params=[False, True], ids=["no_instructions", "instructions"])
def expected(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """What ``auto`` of weights in bfloat16 is on a machine without a GPU, whose CPU multiplies bfloat16 or does not."""
    pretend_cpu(monkeypatch, multiplies=request.param)
    return torch.bfloat16 if request.param else torch.float32


def pretend_cpu(monkeypatch: pytest.MonkeyPatch, *, multiplies: bool) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(weights_dtype, "multiplies_bfloat16", lambda: multiplies)
    weights_dtype._log_choice.cache_clear()


def dtypes(model: nn.Module) -> set[torch.dtype]:
    return {weight.dtype for name, weight in model.named_parameters() if "lora" not in name}


@pytest.mark.parametrize(
    ("saved", "on_gpu", "multiplies", "chosen"),
    [
        (None, False, True, "float32"),
        (None, True, True, "float32"),
        ("float32", False, True, "float32"),
        ("float32", True, True, "float32"),
        ("bfloat16", False, True, "bfloat16"),
        ("bfloat16", False, False, "float32"),
        ("bfloat16", True, False, "bfloat16"),
        ("float16", False, True, "bfloat16"),
        ("float16", False, False, "float32"),
        ("float16", True, False, "bfloat16"),
    ],
)
def test_the_rule(saved: Any, on_gpu: bool, multiplies: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_dtype, "multiplies_bfloat16", lambda: multiplies)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: on_gpu)
    assert automatic_dtype(saved)[0] == automatic_dtype(saved, on_gpu=on_gpu)[0] == chosen


def test_every_reader_of_a_folder_takes_it(half: str, expected: torch.dtype, tmp_path: Path) -> None:
    spec = PolicySpec(source=half, dtype=AUTO)
    with_adapter = PolicySpec(source=half, dtype=AUTO, lora=LoraSpec(rank=2))
    adapter = str(save_policy(*build_policy(with_adapter), tmp_path / "adapter", with_adapter))
    for read in (spec, with_adapter, PolicySpec(source=adapter, dtype=AUTO, lora=LoraSpec(rank=2))):
        assert dtypes(build_policy(read)[0]) == dtypes(outline_policy(read)) == {expected}
    assert dtypes(build_verifier_head(spec)[0]) == {expected}
    frozen = FrozenPolicies.load({"full": half, "adapter": adapter}, dtype=AUTO)
    assert [dtypes(model) for model in frozen.models] == [{expected}] * 2
    assert dtypes(build_policy(PolicySpec(source=half))[0]) == {torch.float32}
    for source in (half, adapter):
        assert BaseModel.read(source).dtype()[0] == str(expected).removeprefix("torch.")


def test_random_weights_are_float32(half: str, expected: torch.dtype) -> None:
    config = json.loads((Path(half) / "config.json").read_text())
    spec = PolicySpec(architecture={**config, "dtype": None}, tokenizer=half, dtype=AUTO)
    assert dtypes(build_policy(spec)[0]) == {torch.float32}


def test_the_choice_is_logged_once(
    half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_cpu(monkeypatch, multiplies=True)
    copied = str(shutil.copytree(half, tmp_path / "copied"))
    with caplog.at_level(logging.INFO, weights_dtype.__name__):
        for source in (half, half, copied):
            build_policy(PolicySpec(source=source, dtype=AUTO), trainable=False)
        pretend_cpu(monkeypatch, multiplies=False)
        build_policy(PolicySpec(source=half, dtype=AUTO), trainable=False)
    first, second = caplog.records
    assert first.getMessage() == "`dtype: auto` is bfloat16 here: this CPU multiplies bfloat16."
    assert second.getMessage().endswith(
        "is float32 here: the weights are saved in bfloat16, for which this CPU has no instructions."
    )
    assert [first.levelname, second.levelname] == ["INFO", "WARNING"]


def test_saved_rollouts_have_the_dtype_that_they_were_scored_in(half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cpu(monkeypatch, multiplies=True)
    assert weights_dtype.dtype_of(half, AUTO) == "bfloat16"
    pretend_cpu(monkeypatch, multiplies=False)
    assert weights_dtype.dtype_of(half, AUTO) == "float32"
    assert weights_dtype.dtype_of(half, "bfloat16") == "bfloat16"


def test_memory_is_counted_for_a_gpu_unless_the_trainer_has_a_cpu(
    half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_cpu(monkeypatch, multiplies=False)
    rows = make_workspace(tmp_path).demonstrations

    def peak(dtype: str, accelerator: str) -> int:
        config = write_sft_config(tmp_path, {"source": half, "dtype": dtype}, rows)
        return plan(["--config", config, f"--trainer.accelerator={accelerator}"]).peak

    on_gpu = peak(AUTO, "auto")
    assert on_gpu == peak("bfloat16", "auto")
    assert on_gpu < peak(AUTO, "cpu")


def test_sft_and_what_follows_it_compute_in_it(
    half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_cpu(monkeypatch, multiplies=True)
    monkeypatch.chdir(tmp_path)
    rows = make_workspace(tmp_path).demonstrations
    command = ["sft", "--model", half, "--train", rows, "--output", "run", "--set", "run.wandb=off"]
    assert main([*command, "--validation", "none", "--epochs", "1"]) == 0
    assert "all weights are trained, in bfloat16 (this CPU multiplies bfloat16)." in " ".join(
        capsys.readouterr().out.split()
    )
    assert yaml.safe_load(Path("run/sft.yaml").read_text())["model"]["init_args"]["policy"]["dtype"] == AUTO
    assert json.loads(Path("run/sft/policies/final/config.json").read_text())["dtype"] == "bfloat16"
    assert main(["rl", "--run", "run", "--write_only", "--anyway"]) == 0
    config = yaml.safe_load(Path("run/rl.yaml").read_text())
    assert config["model"]["init_args"]["policy"]["dtype"] == config["data"]["init_args"]["dtype"] == AUTO


def test_the_reward_of_reinforcement_learning_has_it_too(half: str, expected: torch.dtype, tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    data = RewardDataModule(prompts=workspace.prompts, sft=half, references=[workspace.reference], dtype=AUTO)
    spec = PolicySpec(source=half, dtype=AUTO)
    policy, tokenizer = build_policy(spec)
    data.attach_policy(policy, spec, tokenizer)
    assert data.reward is not None
    assert [dtypes(model) for model in data.reward.frozen.models] == [{expected}, {torch.float32}]
