"""Micro-batches that shrink until they fit, and what a run says where nothing is to shrink."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dpr_lightning.cli.main import main, run
from dpr_lightning.errors import InputError, TryAgain
from tests.strategies.launch import ROOT
from tests.strategies.parity import norm
from tests.workspace import Workspace, make_workspace, write_dpr_config, write_sft_config

CALLBACKS = "dpr_lightning.callbacks."


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("out_of_memory"))


def written(config: str, kind: str | None, **trainer: Any) -> str:
    """A config whose checkpoints lie a step apart; with ``kind`` on a device of small memory, and halving."""
    held = yaml.safe_load(Path(config).read_text())
    folder = Path(config).parent
    names: list[tuple[str, dict[str, Any]]] = [
        ("ResumableCheckpoints", {"folder": str(folder / "checkpoints"), "every_n_steps": 1}),
        ("ReferenceCheckpoints", {"folder": str(folder / "policies"), "fractions": [0.5]}),
    ]
    if kind is not None:
        held["model"]["class_path"] = f"tests.reliability.small_memory.{kind}"
        names.append(("MicroBatchHalving", {"limit": 3}))
    callbacks = [{"class_path": CALLBACKS + name, "init_args": options} for name, options in names]
    held["trainer"] |= {"callbacks": callbacks, "enable_checkpointing": True, "max_steps": 6, **trainer}
    Path(config).write_text(yaml.safe_dump(held))
    return config


def sft(workspace: Workspace, folder: Path, kind: str | None) -> str:
    """Steps of 4 rows in 2 micro-batches; an epoch is 16 rows, so the sixth step is in the second."""
    folder.mkdir()
    plain = write_sft_config(folder, {"source": workspace.sft}, workspace.demonstrations, batch_size=2)
    return written(plain, kind, accumulate_grad_batches=2)


def dpr(workspace: Workspace, folder: Path, kind: str | None) -> str:
    """Rollouts of 8 rows."""
    folder.mkdir()
    return written(write_dpr_config(folder, workspace), kind)


def parts(config: str) -> int:
    return int(json.loads((Path(config).parent / "micro_batches.json").read_text())["parts"])


@pytest.mark.parametrize(("stage", "kind", "found"), [(sft, "SmallSFT", 2), (dpr, "SmallDPR", 8)])
def test_steps_stay_what_they_were(stage: Any, kind: str, found: int, workspace: Workspace, tmp_path: Path) -> None:
    """Memory runs out at the first step, and again in the middle of an epoch, after checkpoints."""
    whole = stage(workspace, tmp_path / "whole", None)
    run(["fit", "--config", whole])
    small = stage(workspace, tmp_path / "small", kind)
    died = 0
    while True:
        try:
            run(["fit", "--config", small])
            break
        except TryAgain as again:
            died += 1
            assert again.alone
    assert parts(small) == found == 2**died
    weights, other = (load_file(tmp_path / name / "policies/final/model.safetensors") for name in ("whole", "small"))
    distance = norm({name: weights[name].double() - other[name].double() for name in weights})
    before = load_file(f"{workspace.sft}/model.safetensors")
    assert distance < 1e-6 * norm(weights)
    assert norm({name: weights[name] - before[name] for name in weights}) > 1e-3 * norm(weights)


def test_the_command_starts_itself_again(workspace: Workspace, tmp_path: Path) -> None:
    config = sft(workspace, tmp_path / "small", "SmallSFT")
    command = [sys.executable, "-m", "dpr_lightning.cli.main", "fit", "--config", config]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stderr.count("cuts every micro-batch into 2 parts") == 1
    assert (tmp_path / "small" / "policies" / "final" / "model.safetensors").is_file()


def test_it_gives_up(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = sft(workspace, tmp_path / "none", "NoMemory")
    for _ in range(3):
        with pytest.raises(TryAgain):
            run(["fit", "--config", config])
    with pytest.raises(torch.OutOfMemoryError):
        run(["fit", "--config", config])
    assert parts(config) == 8
    assert main(["fit", "--config", config]) == 2
    assert "dpr plan" in capsys.readouterr().err


def test_a_limit_of_none_is_refused() -> None:
    from dpr_lightning.callbacks import MicroBatchHalving

    with pytest.raises(InputError, match="at least once"):
        MicroBatchHalving(0)
