"""Callbacks that average weights: `final` has the average, or the run is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dpr_lightning.cli.main import main
from tests.workspace import Workspace, write_sft_config

CALLBACKS = "lightning.pytorch.callbacks"
AVERAGES: dict[str, dict[str, Any]] = {
    "StochasticWeightAveraging": {"swa_lrs": 0.01, "swa_epoch_start": 1},
    "EMAWeightAveraging": {"decay": 0.9},
}


@pytest.mark.parametrize("name", AVERAGES)
def test_the_policy_that_is_written_last_has_the_average(
    name: str,
    workspace: Workspace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def weights(*averages: dict[str, Any], after: bool = False) -> torch.Tensor | None:
        folder = tmp_path / f"{len(averages)}{after}"
        folder.mkdir()
        policies = {
            "class_path": "dpr_lightning.callbacks.ReferenceCheckpoints",
            "init_args": {"folder": str(folder / "policies"), "fractions": [0.99]},
        }
        callbacks = [policies, *averages] if after else [*averages, policies]
        trainer = {"max_steps": -1, "max_epochs": 3, "callbacks": callbacks}
        code = main(["fit", "--config", write_sft_config(folder, {"source": workspace.sft}, rows, trainer=trainer)])
        if code == 2:
            return None
        return torch.cat([value.flatten() for value in load_file(folder / "policies/final/model.safetensors").values()])

    rows = workspace.demonstrations
    average = {"class_path": f"{CALLBACKS}.{name}", "init_args": AVERAGES[name]}
    assert weights(average, after=True) is None
    assert f"{name} puts its average" in capsys.readouterr().err
    averaged, plain = weights(average), weights()
    assert averaged is not None
    assert plain is not None
    assert (averaged - plain).norm() > 1e-4 * plain.norm()
    assert caplog.text.count(f"{name}: the policy `final` has its average") == 1
