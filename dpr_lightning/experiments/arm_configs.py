"""The configs of one seed's trainings: recipes with the changes of an arm, and as many steps as the budget pays for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dpr_lightning.errors import InputError
from dpr_lightning.experiments.arm_specs import BASE, CONTINUED, STEPS, ArmSpec
from dpr_lightning.experiments.online_preference import OnlineRows, online_rows, round_options
from dpr_lightning.experiments.pair_picks import PairsSpec
from dpr_lightning.experiments.preference_pairs import PairSources, pairs_flops
from dpr_lightning.experiments.recipes import (
    Config,
    Recipes,
    answers_of,
    apply_changes,
    checkpoint,
    continue_from,
    move_paths,
    read_config,
    recipe_config,
    references_of,
    reward_of,
    write_config,
)
from dpr_lightning.experiments.shared_trainings import SharedTrainings, cached_flops_of_a_step

RESERVED = {
    *(BASE, "base", "budget", "cache", "cleaned_rows", "configs", "data", "examples", "flops", "pairs"),
    *("results", "scorers", "wandb"),
}
"""Folders of a seed that no arm may be called by."""


@dataclass
class ArmConfigs:
    """Writes the config of each training of one seed, and counts what it costs.

    Args:
        folder: of the seed, with ``base/`` and ``data/``.
        seed: of weights, order and samples.
        recipes: of the experiment.
        arms: all of the experiment.
        sft_key: of the trained π_SFT, on which the cost of a step depends.
    """

    folder: Path
    seed: int
    recipes: Recipes
    arms: Mapping[str, ArmSpec]
    sft_key: str = ""

    @property
    def policies(self) -> Path:
        """The folder of the SFT run's checkpoints."""
        return self.folder / BASE / "policies"

    def sft(self) -> Path:
        """Write the config of the SFT run."""
        return self._write(self._recipe(self.recipes.sft, self.recipes.sft_steps), BASE)

    def dpr(self) -> Path:
        """Write the DPR recipe, whose cost is the budget of every arm; π_SFT has to be trained."""
        return self._write(self._recipe(self.recipes.dpr, self.recipes.dpr_steps), "budget")

    @cached_property
    def budget(self) -> float:
        """Floating-point operations of the DPR recipe's training.

        Raises:
            InputError: it does not say how many steps it takes.
        """
        config = self.dpr()
        steps = read_config(config)["trainer"].get("max_steps")
        if not isinstance(steps, int) or steps < 1:
            raise InputError(
                f"The cost of {self.recipes.dpr} is the budget of all arms, and it has no number of steps: set "
                f"`{STEPS}` in it, or `dpr_steps`."
            )
        return self._flops_of_a_step(config) * steps

    def arm(self, name: str, arm: ArmSpec) -> Path:
        """Write the config of an arm, with as many steps as the budget pays for unless the arm determines them.

        Raises:
            InputError: as by :meth:`changed`; or what it takes outside its training is all of the budget.
        """
        config = self.changed(name, arm)
        if not _is_dpr_recipe(arm) and STEPS not in arm.changes and arm.steps_multiple is None:
            outside = self._outside_flops(name, arm)
            left = self.budget - outside
            if left <= 0:
                source = (
                    "operations in its pairs, scorer and `extra_flops`"
                    if arm.pairs or arm.online_preference
                    else "`extra_flops`"
                )
                raise InputError(
                    f"Arm {name!r} has {outside:.3g} {source}, and the budget, which is the cost of the DPR recipe, is "
                    f"{self.budget:.3g}: set {STEPS!r} in its `changes`, or raise `dpr_steps`."
                )
            config["trainer"]["max_steps"] = max(1, round(left / self._flops_of_a_step(self._write(config, name))))
        return self._write(config, name)

    def flops(self, name: str, arm: ArmSpec) -> float:
        """Floating-point operations of an arm: its steps, its ``extra_flops``, its pairs, and its cleaning.

        Cleaning costs the forward passes that list rows, and the training of the arm whose policy lists them.
        """
        if arm.train is None:
            return arm.extra_flops
        if _is_dpr_recipe(arm):
            return self.budget
        config = self.arm(name, arm)
        flops = self._flops_of_a_step(config) * int(read_config(config)["trainer"]["max_steps"])
        flops += self._outside_flops(name, arm)
        if arm.clean is not None:
            flops += float(json.loads(self.cleaning(name).read_text(encoding="utf-8"))["operations"])
            if arm.clean.by == "refused":
                flops += sum(self.flops(other, self.arms[other]) for other in arm.clean.arms)
        return flops

    def cleaned(self, name: str) -> Path:
        """The file of an arm's cleaned demonstrations."""
        return self.folder / "cleaned_rows" / f"{name}.jsonl"

    def cleaning(self, name: str) -> Path:
        """The file that says how many rows the cleaning of an arm listed, and what that cost."""
        return self.folder / "cleaned_rows" / f"{name}.json"

    def _outside_flops(self, name: str, arm: ArmSpec) -> float:
        """What an arm takes outside its training, its cleaning apart."""
        flops = arm.extra_flops + (0.0 if arm.pairs is None else pairs_flops(self._pairs(arm.pairs, arm)))
        return (
            flops if arm.online_preference is None else flops + self._online(name, arm, self._offline(name, arm)).flops
        )

    def _pairs(self, spec: PairsSpec, arm: ArmSpec) -> Path:
        """Pairs of π_SFT's responses for an arm, which are made when it is first written."""
        return self._shared(arm).pairs(spec)

    def _shared(self, arm: ArmSpec) -> SharedTrainings:
        recipe = read_config(self.dpr())
        names = arm.references or references_of(recipe, self.recipes.dpr)
        sft = str(self.policies / "final")
        sources = PairSources(
            sft,
            str(self.folder / "data" / "prompts.jsonl"),
            sft,
            [str(checkpoint(self.policies, name)) for name in names],
            reward_of(recipe),
            answers_of(recipe),
            seed=self.seed,
        )
        return SharedTrainings(self.folder, self.sft_key, sources)

    def _online(self, name: str, arm: ArmSpec, recipe: Config) -> OnlineRows:
        """The rows of the last round of an arm with ``online_preference``; made when the arm is first written."""
        spec, steps = arm.online_preference, recipe["trainer"].get("max_steps")
        assert spec is not None
        if spec.rounds > 1 and not (isinstance(steps, int) and steps >= spec.rounds):
            raise InputError(
                f"Arm {name!r} has `online_preference.rounds: {spec.rounds}`, and its recipe {steps} steps to divide: "
                f"set {STEPS!r} in its `changes`."
            )
        return online_rows(
            spec,
            self._shared(arm),
            recipe=recipe,
            head=self._recipe(spec.head, None),
            offline=None if arm.pairs is None else self._pairs(arm.pairs, arm),
            verifier=self.recipes.verifier,
            steps=steps // spec.rounds if spec.rounds > 1 else 0,
            limit=spec.limit if spec.limit is not None or arm.pairs is None else arm.pairs.limit,
        )

    def _flops_of_a_step(self, config: Path) -> float:
        return cached_flops_of_a_step(self.folder, config, self.sft_key)

    def changed(self, name: str, arm: ArmSpec) -> Config:
        """The recipe of an arm with its changes, which trains in the arm's folder; its steps are the recipe's.

        Raises:
            InputError: its paths, references, changes or steps do not fit.
        """
        config = self._offline(name, arm)
        if arm.online_preference is not None:
            rows = self._online(name, arm, config)
            if rows.steps:
                config["trainer"]["max_steps"] -= rows.steps
            apply_changes(config, round_options(rows.pairs, rows.policy, arm.online_preference.rounds - 1), name)
        return config

    def _offline(self, name: str, arm: ArmSpec) -> Config:
        """The recipe of an arm with its changes and the rows that it has from the beginning."""
        assert arm.train is not None
        output = self.folder / name
        recipe = self._recipe(self.recipes.named(arm.train), self.recipes.steps_of(arm.train))
        steps = recipe["trainer"].get("max_steps")
        config: Config = move_paths(recipe, str(recipe["trainer"].get("default_root_dir", output)), str(output))
        config["trainer"]["default_root_dir"] = str(output)
        if arm.train == CONTINUED:
            continue_from(config, self.policies / "final", self.seed)
        elif arm.train == BASE:
            config["run"]["references"] = []
        if arm.clean is not None:
            config["data"]["init_args"]["train"] = str(self.cleaned(name))
        if arm.steps_multiple is not None:
            if not isinstance(steps, int) or steps < 1:
                raise InputError(
                    f"Arm {name!r} has `steps_multiple`, and {self.recipes.named(arm.train)} has no number of steps: "
                    f"set `{STEPS}` in it."
                )
            config["trainer"]["max_steps"] = max(1, round(arm.steps_multiple * steps))
        if arm.references is not None:
            data = config["data"]["init_args"]
            if "references" not in data:
                raise InputError(
                    f"Arm {name!r} names `references`, and its recipe has none: it learns from no token reward."
                )
            data["references"] = [str(checkpoint(self.policies, reference)) for reference in arm.references]
        if arm.pairs is not None:
            config["data"]["init_args"]["train"] = str(self._pairs(arm.pairs, arm))
        apply_changes(config, move_paths(arm.changes, self.recipes.home, str(self.folder)), name)
        source = str(config["model"]["init_args"]["policy"]["source"])
        if self.folder not in Path(source).parents:
            raise InputError(
                f"Arm {name!r} starts from {source}, which is no policy of this experiment. In a recipe of your own, "
                f"paths of the experiment begin with {self.recipes.home}/, such as "
                f"{self.recipes.home}/sft/policies/final."
            )
        return config

    def _recipe(self, name: str, steps: int | None) -> Config:
        return recipe_config(name, self.recipes, self.folder, self.seed, {STEPS: steps})

    def _write(self, config: Mapping[str, object], name: str) -> Path:
        return write_config(dict(config), self.folder, name)


def _is_dpr_recipe(arm: ArmSpec) -> bool:
    """Whether an arm is the recipe that sets the budget, unchanged."""
    changed = (arm.changes, arm.references, arm.extra_flops, arm.steps_multiple, arm.pairs, arm.online_preference)
    return arm.train == "dpr" and not any(changed)
