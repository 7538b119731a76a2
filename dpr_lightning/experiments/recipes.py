"""Recipes of an experiment: packaged configs or files, written into a run's folder with its paths and changes."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from dpr_lightning.errors import InputError
from dpr_lightning.experiments.arm_specs import BASE, CONTINUED
from dpr_lightning.folders import add_written
from dpr_lightning.rewards import RewardSpec
from dpr_lightning.rollouts import SamplingOptions

Config = dict[str, Any]


@dataclass(frozen=True)
class Recipes:
    """The configs that the arms of an experiment change: packaged names, or files.

    Args:
        sft: of the run that all arms start from.
        dpr: its references, reward and answers are those of arms that name none; what its training costs is the
            budget of all arms.
        self_play: of arms with ``train: self_play``.
        home: folder that the paths in all recipes begin with, such as ``runs/toy``.
        sft_steps: optimizer steps; None takes the config's.
        dpr_steps: the same, of ``dpr``.
        preview_samples: of π_SFT a prompt, for the preview of dense rewards; 0 previews nothing.
        preview_prompts: development prompts of the preview.
        verifier: name or ``module:function`` of what scores the answers.
        online: whether W&B sends the runs to its server.
    """

    sft: str
    dpr: str
    home: str
    self_play: str = "toy/self_play.yaml"
    sft_steps: int | None = None
    dpr_steps: int | None = None
    preview_samples: int = 16
    preview_prompts: int = 100
    verifier: str = "answer"
    online: bool = False

    def named(self, train: str) -> str:
        """The config that ``train`` of an arm names."""
        return {"dpr": self.dpr, "self_play": self.self_play, BASE: self.sft, CONTINUED: self.sft}.get(train, train)

    def steps_of(self, train: str) -> int | None:
        """Optimizer steps that replace those of that config; None: it has them itself."""
        return {"dpr": self.dpr_steps, BASE: self.sft_steps, CONTINUED: self.sft_steps}.get(train)


def recipe_text(name: str) -> str:
    """The text of a packaged config, or of a file.

    Raises:
        InputError: there is neither.
    """
    if Path(name).is_file():
        return Path(name).read_text(encoding="utf-8")
    packaged = files("dpr_lightning.configs").joinpath(*name.split("/"))
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    raise InputError(f"There is no config {name!r}, neither as a file nor among the packaged ones.")


def recipe_config(name: str, recipes: Recipes, folder: Path, seed: int, changes: Mapping[str, Any]) -> Config:
    """A recipe with its paths in ``folder``.

    Args:
        name: packaged path, such as ``toy/sft.yaml``, or a file.
        recipes: of the experiment; ``home`` is replaced by ``folder``.
        folder: of one seed.
        seed: of order, weights and samples.
        changes: dotted options and their new values; None leaves the config's value.

    Raises:
        InputError: it is no config of ``dpr fit`` with a module, its policy and data.
    """
    config: Config = move_paths(yaml.safe_load(recipe_text(name)), recipes.home, str(folder))
    _check_sections(config, name)
    config["seed_everything"] = seed
    for section in ("model", "data"):
        config[section]["init_args"]["seed"] = seed
    run = {"wandb": "offline"} | (config.get("run") or {})  # what is trained has to be saved
    if run["wandb"] not in (None, False, "off"):
        run["wandb"] = "online" if recipes.online else "offline"
    config["run"] = run
    config.setdefault("trainer", {})
    apply_changes(config, {option: value for option, value in changes.items() if value is not None}, name)
    data = config["data"]["init_args"]
    if "references" in data:
        # In a run with another number of steps a config's reference may have another name.
        data["references"] = [
            path if Path(path).exists() else str(nearest_reference(Path(path).parent)) for path in data["references"]
        ]
    return config


def _check_sections(config: Any, name: str) -> None:
    """Refuse a recipe without the sections that an experiment changes."""
    for option in ("model.init_args.policy.source", "data.init_args"):
        section = config
        for key in option.split("."):
            section = section.get(key) if isinstance(section, dict) else None
        if section is None:
            raise InputError(
                f"The config {name} has no `{option}`. A recipe of an experiment is a whole config of `dpr fit`: a "
                "module with its policy, and data, each by `class_path` and `init_args`."
            )


def continue_from(config: Config, sft: Path, seed: int) -> None:
    """Change the recipe of SFT to go on from π_SFT at a tenth of its learning rate, and to save its end alone.

    Raises:
        InputError: it names no learning rate.
    """
    config["model"]["init_args"]["policy"]["source"] = str(sft)
    try:
        config["model"]["init_args"]["optimizer"]["init_args"]["lr"] /= 10
    except (KeyError, TypeError) as error:
        raise InputError(
            "`train: continued_sft` takes a tenth of the learning rate of SFT, and the SFT recipe names none in "
            "`model.init_args.optimizer.init_args.lr`."
        ) from error
    config["data"]["init_args"]["seed"] = seed + 1
    config["run"]["references"] = []
    config["trainer"] |= {"max_steps": 1, "val_check_interval": None, "limit_val_batches": 0, "callbacks": []}


def apply_changes(config: Config, changes: Mapping[str, Any], owner: str) -> None:
    """Set dotted options of a config.

    Args:
        config: is changed.
        changes: ``trainer.max_steps: 10``.
        owner: arm or recipe, for the error.

    Raises:
        InputError: an option lies below something that has no options.
    """
    for option, value in changes.items():
        *sections, key = option.split(".")
        target: Any = config
        for section in sections:
            target = target.get(section) if isinstance(target, dict) else None
            if not isinstance(target, dict):
                raise InputError(
                    f"Arm {owner!r} changes {option!r}, and its config has no options in {section!r} there."
                )
        target[key] = value


def read_config(path: Path) -> Config:
    """The content of a YAML config."""
    content: Config = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def write_config(config: Config, folder: Path, name: str) -> Path:
    """Write ``configs/<name>.yaml`` in a run folder: a file to read, change and run again."""
    path = folder / "configs" / f"{name}.yaml"
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:  # another process may be reading it
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        add_written(path)
    return path


def move_paths(config: Any, before: str, after: str) -> Any:
    """A config with the folder ``before`` replaced by ``after`` in all paths."""
    if isinstance(config, dict):
        return {key: move_paths(value, before, after) for key, value in config.items()}
    if isinstance(config, list):
        return [move_paths(value, before, after) for value in config]
    if isinstance(config, str) and (config == before or config.startswith(f"{before}/")):
        return after + config[len(before) :]
    return config


def nearest_reference(policies: Path, fraction: float = 0.25) -> Path:
    """The checkpoint in ``policies`` nearest to ``fraction`` of the run, without the one at its end."""
    fractions: dict[str, float] = json.loads((policies / "references.json").read_text(encoding="utf-8"))
    earlier = {name: reached for name, reached in fractions.items() if reached < 1.0}
    return policies / min(earlier, key=lambda name: abs(earlier[name] - fraction))


def checkpoint(policies: Path, name: str) -> Path:
    """The folder of a checkpoint of the SFT run: by its name, or the one nearest to a fraction of the run.

    Raises:
        InputError: there is none of that name.
    """
    if re.fullmatch(r"0?\.\d+", name):
        return nearest_reference(policies, float(name))
    folder = policies / name
    if not folder.is_dir():
        names = ", ".join(sorted(path.name for path in policies.iterdir() if path.is_dir()))
        raise InputError(f"The SFT run has no checkpoint {name!r}; its checkpoints are {names}.")
    return folder


def learns_token_reward(config: Config) -> bool:
    """Whether a recipe learns from the token reward of references alone, at a β that the preview can take."""
    data, kl = config["data"]["init_args"], config["model"]["init_args"].get("kl") or {}
    return "references" in data and not {"verifier", "scorer"} & data.keys() and kl.get("coefficient", 0.0) > 0


def beta_of(config: Config) -> float:
    """β of a recipe, nats of reward per nat of KL."""
    return float(config["model"]["init_args"]["kl"]["coefficient"])


def reward_of(config: Config) -> RewardSpec:
    """The token reward that a recipe learns from."""
    form = config["data"]["init_args"].get("reward")
    return RewardSpec(**form) if form is not None else RewardSpec.recommended()


def answers_of(config: Config) -> SamplingOptions:
    """Where the answers of a recipe end; temperature 1, whatever the config has."""
    sampling = config["data"]["init_args"].get("sampling") or {}
    length = int(sampling.get("max_new_tokens", SamplingOptions.max_new_tokens))
    return SamplingOptions(length, stop_strings=tuple(sampling.get("stop_strings") or ()))


def references_of(config: Config, name: str) -> list[str]:
    """Names of the checkpoints that the DPR recipe ``name`` measures its reward from.

    Raises:
        InputError: there are none.
    """
    references = config["data"]["init_args"].get("references")
    if not references:
        raise InputError(
            f"{name} names no `data.init_args.references`, which arms without `references` take and which score the "
            "answers on the page: name earlier checkpoints of the SFT run."
        )
    return [Path(reference).name for reference in references]
