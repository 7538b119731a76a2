"""What an experiment reads from recipes, and what it writes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dpr_lightning.data.precomputed import hashed_options
from dpr_lightning.errors import InputError
from dpr_lightning.experiments.arm_configs import ArmConfigs
from dpr_lightning.experiments.arm_specs import ArmSpec
from dpr_lightning.experiments.recipes import (
    Recipes,
    answers_of,
    continue_from,
    learns_token_reward,
    recipe_config,
    references_of,
)
from dpr_lightning.rollouts import SamplingOptions

CONFIG = Path(__file__).parents[2] / "configs" / "toy" / "dpr.yaml"


@pytest.mark.parametrize("strings", [[], ["\n\n", "Q:"]])
def test_answers_end_where_the_config_has_it(strings: list[str]) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    if strings:
        config["data"]["init_args"]["sampling"]["stop_strings"] = strings
    answers = answers_of(config)
    assert answers == SamplingOptions(96, stop_strings=tuple(strings))
    # Precomputed rollouts are others with others; those without are what they were before there were any.
    assert hashed_options(answers).get("stop_strings", []) == strings
    assert ("stop_strings" in hashed_options(answers)) == bool(strings)


RECIPES = Recipes("sft.yaml", "dpr.yaml", home="runs/toy")
WHOLE = {
    "model": {"class_path": "a.Module", "init_args": {"policy": {"source": "runs/toy/base"}}},
    "data": {"class_path": "a.Data", "init_args": {"train": "runs/toy/data/rows.jsonl", "other": "runs/toys"}},
}


def write(path: Path, config: Any) -> str:
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_paths_of_a_recipe_are_moved_by_whole_folders(tmp_path: Path) -> None:
    config = recipe_config(write(tmp_path / "mine.yaml", WHOLE), RECIPES, tmp_path / "run", 3, {"trainer.max_steps": 2})
    assert config["data"]["init_args"] == {
        "train": f"{tmp_path}/run/data/rows.jsonl", "other": "runs/toys", "seed": 3,
    }  # fmt: skip
    assert (config["trainer"], config["run"], config["seed_everything"]) == ({"max_steps": 2}, {"wandb": "offline"}, 3)
    # What a config leaves out has the defaults of `dpr fit`.
    assert answers_of(config) == SamplingOptions()
    assert not learns_token_reward(config)
    config["data"]["init_args"]["references"], config["model"]["init_args"]["kl"] = ["a"], {"target": 0.1}
    assert not learns_token_reward(config)  # no β to preview at


def test_what_is_missing_in_a_recipe_is_named(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    for content in (None, ["a"], {"data": WHOLE["data"]}, WHOLE | {"model": {"class_path": "a.Module"}}):
        with pytest.raises(InputError, match=r"mine\.yaml has no `model\.init_args\.policy\.source`"):
            recipe_config(write(mine, content), RECIPES, tmp_path, 0, {})
    with pytest.raises(InputError, match=r"has no `data\.init_args`"):
        recipe_config(write(mine, {"model": WHOLE["model"]}), RECIPES, tmp_path, 0, {})
    config = recipe_config(write(mine, WHOLE), RECIPES, tmp_path, 0, {})
    with pytest.raises(InputError, match="names none in `model"):
        continue_from(config, tmp_path, 0)
    with pytest.raises(InputError, match="names no `data"):
        references_of(config, "mine.yaml")
    configs = ArmConfigs(tmp_path, 0, Recipes("sft.yaml", write(mine, WHOLE), home="runs/toy"), {})
    with pytest.raises(InputError, match=r"has no number of steps: set `trainer\.max_steps` in it, or `dpr_steps`"):
        _ = configs.budget


def test_a_multiple_of_steps_takes_steps_to_multiply(tmp_path: Path) -> None:
    longer, mine = ArmSpec("sft", steps_multiple=2.5), write(tmp_path / "mine.yaml", WHOLE)
    with pytest.raises(InputError, match=r"`steps_multiple`, and .*mine\.yaml has no number of steps: set `trainer\."):
        ArmConfigs(tmp_path, 0, Recipes(mine, "dpr.yaml", "runs/toy"), {}).changed("longer", longer)
    for recipe, steps in ((WHOLE, 4), (WHOLE | {"trainer": {"max_steps": 100}}, None)):
        configs = ArmConfigs(
            tmp_path, 0, Recipes(write(tmp_path / "mine.yaml", recipe), mine, "runs/toy", sft_steps=steps), {}
        )
        config = configs.changed("longer", longer)
        assert config["trainer"]["max_steps"] == 2.5 * (steps or 100)
        assert config["model"]["init_args"]["policy"]["source"] == str(tmp_path / "base")


def test_paths_in_the_changes_of_an_arm_are_those_of_its_seed(tmp_path: Path) -> None:
    recipe = write(tmp_path / "mine.yaml", WHOLE | {"trainer": {"max_steps": 4}})
    configs = ArmConfigs(tmp_path / "seed_1", 1, Recipes(recipe, recipe, home="runs/toy"), {})
    arm = ArmSpec(train="sft", steps_multiple=1, changes={"data.init_args.train": "runs/toy/data/oracle_masked.jsonl"})
    config = configs.changed("oracle", arm)
    assert config["data"]["init_args"]["train"] == str(tmp_path / "seed_1" / "data" / "oracle_masked.jsonl")
    assert config["trainer"]["max_steps"] == 4
