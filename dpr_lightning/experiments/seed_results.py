"""Results of one seed as a file, and the check that files of several machines belong to one comparison."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dpr_lightning.errors import InputError
from dpr_lightning.experiments.arm_specs import ArmSpec
from dpr_lightning.experiments.predictions import Promise
from dpr_lightning.experiments.recipes import Recipes, recipe_text

# Options that do not change what is measured.
NOT_MEASURED = {"seeds", "output", "title", "pool", "online", "focus"}
# Options that files of earlier versions do not have, with what these versions did.
ADDED_SINCE = {"verifier": "answer", "noise": 0.0, "noise_kind": "step", "hidden_size": 128, "layers": 4}


@dataclass(frozen=True)
class Measured:
    """One seed: ``results`` of each arm by prompt, its ``promised`` gain, and the ``flops`` of its training."""

    results: dict[str, dict[str, Any]]
    promised: dict[str, Promise]
    flops: dict[str, float]


def identity_of(options: Mapping[str, Any], recipes: Recipes, arms: Mapping[str, ArmSpec]) -> dict[str, Any]:
    """All options that the results of a seed depend on, as plain data: seeds with the same are one comparison.

    Args:
        options: of the command.
        recipes: whose contents count, without their comments.
        arms: whose recipes count as well.
    """
    identity = {name: value for name, value in options.items() if name not in NOT_MEASURED}
    identity["arms"] = {name: dataclasses.asdict(arm) for name, arm in arms.items()}
    of_arms = [recipes.named(arm.train) for arm in arms.values() if arm.train is not None]
    names = dict.fromkeys([recipes.sft, recipes.dpr, recipes.self_play, *of_arms])
    contents = [json.dumps(yaml.safe_load(recipe_text(name)), sort_keys=True) for name in names]
    identity["recipes"] = [hashlib.sha256(text.encode()).hexdigest() for text in contents]
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def write_seed(folder: Path, seed: int, identity: Mapping[str, Any], measured: Measured) -> None:
    """Write ``seed_N.json``: all that a comparison needs of one seed, a few hundred kilobytes."""
    results = {
        name: {key: value for key, value in result.items() if key not in ("key", "seconds")}
        for name, result in measured.results.items()
    }
    promised = {name: dataclasses.asdict(promise) for name, promise in measured.promised.items()}
    saved = {"seed": seed, "asked": identity, "results": results, "promised": promised, "flops": measured.flops}
    (folder / f"seed_{seed}.json").write_text(json.dumps(saved) + "\n", encoding="utf-8")


def measured_elsewhere(pool: Sequence[str], identity: Mapping[str, Any]) -> dict[int, Measured]:
    """Read the seeds whose ``seed_N.json`` are in the folders ``pool``.

    Raises:
        InputError: a folder has none, a seed occurs twice, a file is damaged, or is of another comparison.
    """
    measured: dict[int, Measured] = {}
    for folder in pool:
        files = sorted(Path(folder).glob("seed_*.json"))
        if not files:
            raise InputError(f"`pool` names {folder}, and there is no seed_N.json there: a finished seed leaves one.")
        for file in files:
            saved = _read(file)
            measured_as = _completed(saved["asked"])
            if measured_as != identity:
                raise InputError(
                    f"{file} was measured with other settings: {_difference(measured_as, identity)}. Seeds can be "
                    "pooled only when all but `seeds`, `output` and `title` is the same."
                )
            if saved["seed"] in measured:
                raise InputError(f"Seed {saved['seed']} is in the pool twice, at last in {file}: name one of them.")
            promised = {name: Promise(**promise) for name, promise in saved["promised"].items()}
            measured[saved["seed"]] = Measured(saved["results"], promised, saved["flops"])
    return measured


def _read(file: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _ = saved["seed"], saved["asked"]["arms"], saved["results"], saved["promised"], saved["flops"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not what `dpr compare` writes for a seed ({error}): run that seed again."
        ) from error
    return saved


def _completed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity that an earlier version wrote, with the options that it did not have."""
    arms = {name: dataclasses.asdict(ArmSpec()) | arm for name, arm in identity["arms"].items()}
    return ADDED_SINCE | dict(identity) | {"arms": arms}


def _difference(before: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """A sentence on the first option that differs."""
    for name in sorted(set(before) | set(identity)):
        ours, theirs = before.get(name), identity.get(name)
        if ours == theirs:
            continue
        if name == "arms" and isinstance(ours, dict) and isinstance(theirs, dict):
            arms = [arm for arm in sorted(set(ours) | set(theirs)) if ours.get(arm) != theirs.get(arm)]
            return f"the arms {', '.join(arms)} differ"
        if name == "recipes":
            return "the configs of SFT, DPR or other arms differ"
        return f"`{name}` was {ours} and is {theirs}"
    return "nothing differs"
