"""What Python does by default is what the recipes in configs/ spell out."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dpr_lightning import CreditSpec, DensePathReinforce, KLSpec, PolicySpec, RewardDataModule, RewardSpec

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*/dpr*.yaml"))


def arguments(recipe: Path, part: str) -> dict[str, Any]:
    """The options of the module or the data of a recipe."""
    options: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))[part]["init_args"]
    return options


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_estimator_and_its_credit(recipe: Path) -> None:
    options, module = arguments(recipe, "model"), DensePathReinforce(PolicySpec("nowhere"))
    assert options["estimator"] == module.estimator
    assert CreditSpec(**options["credit"]) == module.credit_spec


def test_the_reward_and_the_weight_of_the_kl_term() -> None:
    assert len(RECIPES) >= 4
    toy = CONFIGS / "toy" / "dpr.yaml"
    assert KLSpec(**arguments(toy, "model")["kl"]) == DensePathReinforce(PolicySpec("nowhere")).kl
    default = RewardDataModule("prompts.jsonl", "sft", ["reference"])
    assert RewardSpec(**arguments(toy, "data")["reward"]) == default.reward_spec
