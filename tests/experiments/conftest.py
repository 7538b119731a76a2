"""Experiments of tests: cheap counts of what a step costs, and recipes with short answers."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from dpr_lightning.experiments import flops
from tests.cli.conftest import dpr_config, sft_config, workspace

__all__ = ["dpr_config", "sft_config", "workspace"]


@pytest.fixture(autouse=True)
def few_counted_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps are counted where a test is not about counting."""
    if request.module.__name__.rpartition(".")[2] != "test_flops":
        monkeypatch.setattr(flops, "STEPS", 3)


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The packaged recipes with short answers, and without runs of W&B."""
    folder, paths = tmp_path_factory.mktemp("recipes"), {}
    for name in ("sft", "dpr", "self_play"):
        content = yaml.safe_load(files("dpr_lightning.configs").joinpath("toy", f"{name}.yaml").read_text())
        content["run"] = {**content.get("run", {}), "wandb": None}
        content["data"]["init_args"].get("sampling", {})["max_new_tokens"] = 16
        paths[name] = str(folder / f"{name}.yaml")
        Path(paths[name]).write_text(yaml.safe_dump(content))
    return paths
