"""Micro-batches that shrink until they fit, and what a run says where nothing is to shrink."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensor

from dpr_lightning.cli.main import arguments_to_resume, main, run
from dpr_lightning.cli.plan_command import plan
from dpr_lightning.errors import REQUEUE, InputError, TryAgain
from dpr_lightning.modules import SupervisedIRL
from tests.strategies.launch import ROOT, run_ranks, start_ranks
from tests.strategies.parity import norm
from tests.workspace import Workspace, make_workspace, write_dpr_config, write_sft_config

CALLBACKS = "dpr_lightning.callbacks."


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("out_of_memory"))


def write_run(config: str, kind: str | None, **trainer: Any) -> str:
    """A config whose checkpoints lie a step apart; with ``kind`` on a device of small memory, and halving."""
    content = yaml.safe_load(Path(config).read_text())
    folder = Path(config).parent
    names: list[tuple[str, dict[str, Any]]] = [
        ("ResumableCheckpoints", {"folder": str(folder / "checkpoints"), "every_n_steps": 1}),
        ("ReferenceCheckpoints", {"folder": str(folder / "policies"), "fractions": [0.5]}),
    ]
    if kind is not None:
        content["model"]["class_path"] = f"tests.reliability.small_memory.{kind}"
        names.append(("MicroBatchHalving", {"limit": 3}))
    callbacks = [{"class_path": CALLBACKS + name, "init_args": options} for name, options in names]
    content["trainer"] |= {"callbacks": callbacks, "enable_checkpointing": True, "max_steps": 6, **trainer}
    Path(config).write_text(yaml.safe_dump(content))
    return config


def sft(workspace: Workspace, folder: Path, kind: str | None) -> str:
    """Steps of 4 rows in 2 micro-batches; an epoch is 16 rows, so the sixth step is in the second."""
    folder.mkdir()
    plain = write_sft_config(folder, {"source": workspace.sft}, workspace.demonstrations, batch_size=2)
    return write_run(plain, kind, accumulate_grad_batches=2)


def dpr(workspace: Workspace, folder: Path, kind: str | None) -> str:
    """Rollouts of 8 rows."""
    folder.mkdir()
    return write_run(write_dpr_config(folder, workspace), kind)


def parts(config: str) -> int:
    return int(json.loads((Path(config).parent / "micro_batches.json").read_text())["parts"])


@pytest.mark.parametrize(("stage", "kind", "expected"), [(sft, "SmallSFT", 2), (dpr, "SmallDPR", 8)])
def test_steps_stay_what_they_were(stage: Any, kind: str, expected: int, workspace: Workspace, tmp_path: Path) -> None:
    """Memory runs out at the first step, and again in the middle of an epoch, after checkpoints."""
    whole = stage(workspace, tmp_path / "whole", None)
    run(["fit", "--config", whole])
    small = stage(workspace, tmp_path / "small", kind)
    for _ in range(round(math.log2(expected))):
        with pytest.raises(TryAgain) as again:
            run(["fit", "--config", small])
        assert again.value.alone
    run(["fit", "--config", small])
    assert parts(small) == expected
    weights, other = (load_file(tmp_path / name / "policies/final/model.safetensors") for name in ("whole", "small"))
    distance = norm({name: weights[name].double() - other[name].double() for name in weights})
    before = load_file(f"{workspace.sft}/model.safetensors")
    assert distance < 1e-6 * norm(weights)
    assert norm({name: weights[name] - before[name] for name in weights}) > 1e-3 * norm(weights)


@pytest.mark.slow
def test_the_command_starts_itself_again(workspace: Workspace, tmp_path: Path) -> None:
    config = sft(workspace, tmp_path / "small", "SmallSFT")
    content = yaml.safe_load(Path(config).read_text())
    content["trainer"]["callbacks"].pop()
    Path(config).write_text(yaml.safe_dump(content))
    option = "--trainer.callbacks+=dpr_lightning.callbacks.MicroBatchHalving"
    assert option in (ROOT / "docs" / "reliability.md").read_text()
    command = [sys.executable, "-m", "dpr_lightning.cli.main", "fit", "--config", config, option]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stderr.count("cuts every micro-batch into 2 parts") == 1
    assert (tmp_path / "small" / "policies" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize("anew", [["--ckpt_path", "none"], ["--ckpt_path=none"]])
def test_a_run_that_starts_itself_again_does_not_begin_anew(anew: list[str]) -> None:
    options = ["--trainer.max_steps", "3"]
    assert arguments_to_resume(["fit", *anew, *options]) == ["fit", *options]
    for named in (["--ckpt_path", "last"], ["--data.chat_template", "none"]):
        assert arguments_to_resume(["fit", *named, *options]) == ["fit", *named, *options]


def test_of_two_ranks_the_same_command_goes_on(workspace: Workspace, tmp_path: Path) -> None:
    config = sft(workspace, tmp_path / "small", "SmallSFT")
    content = yaml.safe_load(Path(config).read_text())
    content["trainer"] |= {"strategy": "ddp", "devices": 2, "accumulate_grad_batches": 1}
    Path(config).write_text(yaml.safe_dump(content))
    command = ["dpr_lightning.cli.main", "fit", "--config", config]
    processes = start_ranks(command, 2, tmp_path / "logs")
    try:
        assert [process.wait(100) for process in processes] == [REQUEUE, REQUEUE]
    finally:
        for process in processes:
            process.kill()
    assert parts(config) == 2
    run_ranks(command, 2, tmp_path / "logs")
    assert (tmp_path / "small" / "policies" / "final" / "model.safetensors").is_file()


@pytest.mark.slow
def test_it_gives_up(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = sft(workspace, tmp_path / "none", "NoMemory")
    for _ in range(3):
        with pytest.raises(TryAgain):
            run(["fit", "--config", config])
    with pytest.raises(torch.OutOfMemoryError):
        run(["fit", "--config", config])
    assert parts(config) == 8
    assert main(["fit", "--config", config]) == 2
    message = capsys.readouterr().err
    assert "MicroBatchHalving" in message
    # A module of the tests is none that `dpr plan` knows.
    assert "`dpr plan --what_helps` with the same arguments" in message


@pytest.mark.slow
def test_what_would_help_is_counted(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_sft_config(tmp_path, {"source": workspace.sft}, workspace.demonstrations, batch_size=64)

    inner = SupervisedIRL.training_step

    def full(module: SupervisedIRL, *arguments: Any) -> Any:
        if not isinstance(next(module.policy.parameters()), FakeTensor):  # those of a counted run take no memory
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return inner(module, *arguments)

    monkeypatch.setattr(SupervisedIRL, "training_step", full)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["fit", "--config", config]) == 2
    lines = capsys.readouterr().err.splitlines()
    (total,) = (line for line in lines if line.startswith("Of "))
    rows = {line.split()[0]: float(line.split()[-2].replace(",", "")) for line in lines if line.startswith("  --")}
    assert set(rows) == {"--data.batch_size", "--model.policy.gradient_checkpointing", "--model.policy.lora.rank"}
    now = plan(["--config", config]).peak / 2**20
    halved = plan(["--config", config, "--data.batch_size", "32", "--trainer.accumulate_grad_batches", "2"]).peak
    assert f"{now:,.1f} MiB" in total
    assert rows["--data.batch_size"] == pytest.approx(now - halved / 2**20, abs=0.06)
    assert rows["--data.batch_size"] > now / 3
    assert rows["--model.policy.gradient_checkpointing"] > 0


def test_a_limit_of_none_is_refused() -> None:
    from dpr_lightning.callbacks import MicroBatchHalving

    with pytest.raises(InputError, match="at least once"):
        MicroBatchHalving(0)
