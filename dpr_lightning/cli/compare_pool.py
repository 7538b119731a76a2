"""Seeds of a comparison measured apart, on one machine or several, and what makes them one comparison."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dpr_lightning.cli.compare_preview import Promise
from dpr_lightning.errors import InputError

# What says where and how a comparison is kept, and not what is measured.
NOT_ASKED = {"seeds", "output", "title", "pool", "online"}


@dataclass(frozen=True)
class Measured:
    """One seed: ``results`` of each arm by prompt, what was ``promised`` of it, and the ``flops`` of its training."""

    results: dict[str, dict[str, Any]]
    promised: dict[str, Promise]
    flops: dict[str, float]


def asked_of(options: Mapping[str, Any], recipes: Sequence[str]) -> dict[str, Any]:
    """What the results of a seed depend on, as plain data: two seeds belong together when it is the same.

    Args:
        options: of ``dpr compare``.
        recipes: the texts of the configs that its arms change.
    """
    asked = {name: value for name, value in options.items() if name not in NOT_ASKED}
    asked["arms"] = {name: dataclasses.asdict(arm) for name, arm in options["arms"].items()}
    said = [json.dumps(yaml.safe_load(text), sort_keys=True) for text in recipes]  # whatever the comments are
    asked["recipes"] = [hashlib.sha256(text.encode()).hexdigest() for text in said]
    plain: dict[str, Any] = json.loads(json.dumps(asked))
    return plain


def keep(folder: Path, seed: int, asked: Mapping[str, Any], measured: Measured) -> None:
    """Write ``seed_N.json``: all that a comparison needs of a seed, a few hundred kilobytes."""
    results = {
        name: {key: value for key, value in held.items() if key not in ("key", "seconds")}
        for name, held in measured.results.items()
    }
    promised = {name: dataclasses.asdict(promise) for name, promise in measured.promised.items()}
    held = {"seed": seed, "asked": asked, "results": results, "promised": promised, "flops": measured.flops}
    (folder / f"seed_{seed}.json").write_text(json.dumps(held) + "\n", encoding="utf-8")


def measured_elsewhere(pool: Sequence[str], asked: Mapping[str, Any]) -> dict[int, Measured]:
    """The seeds whose ``seed_N.json`` lie in the folders ``pool``.

    Raises:
        InputError: a folder holds none, a seed is there twice, a file is damaged, or its comparison was another one.
    """
    found: dict[int, Measured] = {}
    for folder in pool:
        files = sorted(Path(folder).glob("seed_*.json"))
        if not files:
            raise InputError(f"`pool` names {folder}, and there is no seed_N.json there: a finished seed leaves one.")
        for file in files:
            held = _read(file)
            if held["asked"] != asked:
                raise InputError(
                    f"{file} was measured with other settings: {_difference(held['asked'], asked)}. Seeds can be "
                    "pooled only when all but `seeds`, `output` and `title` is the same."
                )
            if held["seed"] in found:
                raise InputError(f"Seed {held['seed']} is in the pool twice, at last in {file}: name one of them.")
            promised = {name: Promise(**promise) for name, promise in held["promised"].items()}
            found[held["seed"]] = Measured(held["results"], promised, held["flops"])
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _ = held["seed"], held["asked"]["arms"], held["results"], held["promised"], held["flops"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not what a seed of `dpr compare` leaves ({error}): make it again.") from error
    return held


def _difference(held: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first option that is not the same."""
    for name in sorted(set(held) | set(asked)):
        ours, theirs = held.get(name), asked.get(name)
        if ours == theirs:
            continue
        if name == "arms" and isinstance(ours, dict) and isinstance(theirs, dict):
            arms = [arm for arm in sorted(set(ours) | set(theirs)) if ours.get(arm) != theirs.get(arm)]
            return f"the arms {', '.join(arms)} differ"
        if name == "recipes":
            return "the configs of SFT, DPR or self-play differ"
        return f"`{name}` was {ours} and is {theirs}"
    return "nothing differs"
