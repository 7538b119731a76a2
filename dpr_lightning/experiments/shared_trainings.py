"""Trainings and pairs of one seed that several arms use; each is made once."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpr_lightning.errors import InputError
from dpr_lightning.experiments.flops import flops_of_a_step
from dpr_lightning.experiments.json_cache import cached, key_of, write_cached
from dpr_lightning.experiments.pair_picks import PairsSpec
from dpr_lightning.experiments.preference_pairs import PairSources, pairs_file
from dpr_lightning.experiments.recipes import Config, move_paths, read_config, write_config
from dpr_lightning.experiments.run_folder import train_once

FOLDER = "scorers"
"""Folder of a seed for the trainings that several arms use."""


@dataclass(frozen=True)
class Trained:
    """The folder of a trained ``policy`` or head, and the floating-point operations of its training."""

    policy: str
    flops: float


@dataclass(frozen=True)
class SharedTrainings:
    """What the arms of a seed have trained and labelled beside their own trainings.

    Args:
        folder: of the seed.
        sft_key: of the trained π_SFT, on which everything here depends.
        sources: models and prompts of pairs; the policy whose responses are paired is named with each request.
    """

    folder: Path
    sft_key: str
    sources: PairSources

    def train(self, config: Config, name: str) -> Trained:
        """Train a config, unless that has been done.

        Args:
            config: whole; its folder is replaced.
            name: in the messages.

        Raises:
            InputError: it does not say how many steps it takes.
        """
        steps = config["trainer"].get("max_steps")
        if not isinstance(steps, int) or steps < 1:
            raise InputError(f"The config of {name} has no number of steps: set `trainer.max_steps` in it.")
        root = str(self.folder / FOLDER)  # the same for all arms, whose folders differ
        moved: Config = move_paths(config, str(config["trainer"].get("default_root_dir", root)), root)
        key = key_of(self.sft_key, json.dumps(moved, sort_keys=True))[:16]
        folder = self.folder / FOLDER / key
        moved = move_paths(moved, root, str(folder))
        moved["trainer"]["default_root_dir"] = str(folder)
        path = write_config(moved, self.folder, f"{FOLDER}.{key}")
        train_once(path, folder, key_of(self.sft_key, path.read_text(encoding="utf-8")))
        return Trained(str(folder / "policies" / "final"), steps * self.flops_of_a_step(path))

    def pairs(self, spec: PairsSpec, policy: str | None = None, round_number: int = 0) -> Path:
        """The file of pairs of a policy's responses, which are made unless they are there.

        Args:
            spec: of the pairs.
            policy: its folder; None: π_SFT.
            round_number: responses of other rounds have other random numbers.
        """
        sources = replace(self.sources, policy=policy or self.sources.policy, seed=self.sources.seed + round_number)
        return pairs_file(self.folder / "pairs", spec, sources, self.sft_key)

    def flops_of_a_step(self, config: Path) -> float:
        """Floating-point operations of one step, counted once for all numbers of steps."""
        return cached_flops_of_a_step(self.folder, config, self.sft_key)


def cached_flops_of_a_step(folder: Path, config: Path, sft_key: str) -> float:
    """Floating-point operations of one step of a config, counted once for all numbers of steps.

    Args:
        folder: of the seed.
        config: of the training.
        sft_key: of the trained π_SFT.
    """
    options: dict[str, Any] = read_config(config)
    options["trainer"].pop("max_steps", None)
    key = key_of(sft_key, json.dumps(options, sort_keys=True))
    cache = folder / "flops" / f"{config.stem}.json"
    if (counted := cached(cache, key)) is not None:
        return float(counted["flops_of_a_step"])
    flops = flops_of_a_step(config)
    write_cached(cache, key, {"flops_of_a_step": flops})
    return flops
