"""Every arm of every recipe of a comparison, at a size that takes seconds."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpr_lightning.cli.main import main
from dpr_lightning.experiments import arm_configs

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "compare").glob("*.yaml"))
STEPS = 8


def shrunk(value: Any, sft_steps: int) -> Any:
    """A recipe whose checkpoints are those of a run of ``STEPS`` steps, at the same fractions of it."""
    if isinstance(value, dict):
        return {key: shrunk(entry, sft_steps) for key, entry in value.items()}
    if isinstance(value, list):
        return [shrunk(entry, sft_steps) for entry in value]
    if isinstance(value, str) and value.startswith("step_"):
        return f"step_{int(value[5:]) * STEPS // sft_steps:07d}"
    # After so few steps no answer is right, and all would score the same.
    return f"verifier:{__name__}:codes" if value == "verifier:answer" else value


def codes(prompt: str, answer: str, metadata: Any) -> float:
    return float(sum(map(ord, answer)) % 97)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_arm_runs(recipe: Path, recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = tmp_path / "toy"
    content = yaml.safe_load(recipe.read_text())
    noise = content.pop("noise", 0.0)
    sizes = ["--noise", str(noise), "--demonstrations", "40", "--prompts", "64", "--development", "8", "--test", "4"]
    assert main(["toy", "--output", str(toy), *sizes, "--hidden_size", "32", "--layers", "2"]) == 0
    config = shrunk(content, content.get("sft_steps", 400)) | {
        "seeds": [1], "output": str(tmp_path / "out"), "data": str(toy), "sft_steps": STEPS, "dpr_steps": 1,
        "samples": 1, "preview_samples": 2, "preview_prompts": 2, **recipes,
    }  # fmt: skip
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(config))
    # Counting operations trains every arm once more; test_flops does that.
    monkeypatch.setattr(arm_configs, "flops_of_a_step", lambda _: 1.0)
    monkeypatch.setattr(arm_configs, "pairs_flops", lambda _: 0.0)
    assert main(["compare", "--config", str(path)]) == 0
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert set(result["arms"]) == {"sft", *content["arms"]}
