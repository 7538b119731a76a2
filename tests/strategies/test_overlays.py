"""The overlays of configs/strategy/ on a real command, which starts its second rank by itself."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from dpr_lightning.cli.main import main, run
from dpr_lightning.errors import InputError
from dpr_lightning.strategies import Zero2Strategy, Zero3Strategy
from tests.strategies.launch import ROOT

TOY = "toy --output runs/toy --demonstrations 40 --prompts 64 --development 8 --test 8 --hidden_size 32 --layers 2"


# DeepSpeed compiles an Adam for CPUs, and what talks to a disk, at the first start.
COMPILED = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")]
ON_DISK = [*COMPILED, pytest.mark.skipif(not Path("/usr/include/libaio.h").exists(), reason="no libaio")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overlay",
    [
        "zero2",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero3", "fsdp2")),
        pytest.param("zero2_offload", marks=COMPILED),
        pytest.param("zero3_offload", marks=COMPILED),
        pytest.param("zero3_nvme", marks=ON_DISK),
    ],
)
def test_a_command_with_an_overlay(
    overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(TOY)) == 0
    command = f"fit --config configs/toy/sft.yaml --config configs/strategy/{overlay}.yaml --trainer.devices 2"
    shorter = ["--trainer.max_steps", "4"]
    if overlay == "zero3_nvme":
        shorter += ["--trainer.strategy.nvme_path", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-m", "dpr_lightning.cli.main", *shlex.split(command), *shorter],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    policies = tmp_path / "runs" / "toy" / "sft" / "policies"
    whole = AutoModelForCausalLM.from_pretrained(policies / "final")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "toy" / "base")
    trained, before = dict(whole.named_parameters()), dict(base.named_parameters())
    assert trained.keys() == before.keys()
    assert all(trained[name].shape == before[name].shape for name in before)
    assert any((trained[name] != before[name]).any() for name in before)
    assert (policies / "step_0000001" / "model.safetensors").is_file()
    # The shards of the last checkpoint hold the same weights, for a run with another number of ranks to start from.
    state = tmp_path / "runs" / "toy" / "sft" / "checkpoints" / "step_0000004" / "state.ckpt"
    assert state.is_dir()
    assert main(["export", "--source", "runs/toy/base", "--checkpoint", str(state), "--output", "runs/gathered"]) == 0
    gathered = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "gathered").named_parameters())
    assert all(torch.equal(gathered[name], trained[name]) for name in trained)
    # One process evaluates them too; Lightning loads shards into their own ranks, and ZeRO-3's not at all.
    validate = ["validate", "--config", "configs/toy/sft.yaml"]
    final = _metrics([*validate, "--model.policy.source", str(policies / "final")])
    assert _metrics([*validate, "--ckpt_path", str(state.parent)]) == final
    assert _metrics(validate) != final
    sharded = [*validate, "--config", f"configs/strategy/{overlay}.yaml", "--ckpt_path", str(state.parent)]
    assert main(sharded) == 2
    assert "--trainer.strategy auto" in capsys.readouterr().err


def _metrics(arguments: list[str]) -> dict[str, float]:
    return {name: float(value) for name, value in run(arguments).trainer.callback_metrics.items()}


def test_overlays_name_our_strategies() -> None:
    for path in (ROOT / "configs" / "strategy").glob("*.yaml"):
        named = yaml.safe_load(path.read_text())["trainer"]["strategy"]
        assert named == "ddp" or named["class_path"].startswith("dpr_lightning.strategies.")


def test_contradictions_are_refused() -> None:
    with pytest.raises(InputError, match="Zero3Strategy"):
        Zero2Strategy(offload="everything")
    with pytest.raises(InputError, match="offload"):
        Zero3Strategy(nvme_path="/disk")
