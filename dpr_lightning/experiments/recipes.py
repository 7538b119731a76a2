"""The configs of the stages of quickstart, smollm2 and compare: files in the run's folder, to read and rerun."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from dpr_lightning.errors import InputError
from dpr_lightning.folders import add_written
from dpr_lightning.rewards import RewardSpec
from dpr_lightning.rollouts import SamplingOptions

TRAINING_PASSES = 3  # forward and backward, in forward passes over a token


@dataclass(frozen=True)
class DprSettings:
    """Options of the DPR stage's config that other stages need; ``beta`` is β."""

    reference: str
    reward: RewardSpec
    beta: float
    answers: SamplingOptions

    @classmethod
    def read(cls, config: Path) -> "DprSettings":
        """Read the YAML file of the stage."""
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
        data = content["data"]["init_args"]
        return cls(
            data["references"][0],
            RewardSpec(**data["reward"]),
            float(content["model"]["init_args"]["kl"]["coefficient"]),
            answers_of(data),
        )


def answers_of(data: Mapping[str, Any]) -> SamplingOptions:
    """Where answers end by the data options of a DPR config; temperature 1, whatever the config has."""
    sampling = data["sampling"]
    return SamplingOptions(int(sampling["max_new_tokens"]), stop_strings=tuple(sampling.get("stop_strings") or ()))


def stage_config(
    packaged: str, home: str, folder: Path, seed: int, changes: Mapping[str, Any], *, online: bool = False
) -> Path:
    """Write a packaged config with its paths in ``folder``: a file to read, change and run again.

    Args:
        packaged: path inside ``dpr_lightning.configs``, such as ``toy/sft.yaml``; or a file.
        home: folder that the packaged config writes to, such as ``runs/toy``.
        folder: replaces ``home``; the config is written to ``configs/`` in it.
        seed: of order, weights and samples.
        changes: dotted options and their new values; None leaves the config's value.
        online: whether W&B sends the run to its server.
    """
    config = move_paths(_read(packaged), home, str(folder))
    config["seed_everything"] = seed
    for section in ("model", "data"):
        config[section]["init_args"]["seed"] = seed
    for logger in config["trainer"]["logger"]:
        if "offline" in logger["init_args"]:
            logger["init_args"]["offline"] = not online
    for option, value in changes.items():
        if value is not None:
            *owners, key = option.split(".")
            target = config
            for owner in owners:
                target = target[owner]
            target[key] = value
    data = config["data"]["init_args"]
    if "references" in data:
        # In a run with another number of steps a config's reference may have another name.
        data["references"] = [
            path if Path(path).exists() else str(nearest_reference(Path(path).parent)) for path in data["references"]
        ]
    return write_config(config, folder, Path(packaged).stem)


def _read(packaged: str) -> dict[str, Any]:
    """The content of a packaged config, or of a file."""
    return dict(yaml.safe_load(recipe_text(packaged)))


def recipe_text(packaged: str) -> str:
    """The text of a packaged config, or of a file."""
    packaged_file = files("dpr_lightning.configs").joinpath(*packaged.split("/"))
    if Path(packaged).is_file():
        return Path(packaged).read_text(encoding="utf-8")
    if packaged_file.is_file():
        return packaged_file.read_text(encoding="utf-8")
    raise InputError(f"There is no config {packaged!r}, neither as a file nor among the packaged ones.")


def move_paths(config: Any, before: str, after: str) -> Any:
    """A config with ``before`` replaced by ``after`` in all strings."""
    if isinstance(config, dict):
        return {key: move_paths(value, before, after) for key, value in config.items()}
    if isinstance(config, list):
        return [move_paths(value, before, after) for value in config]
    return config.replace(before, after) if isinstance(config, str) else config


def write_config(config: dict[str, Any], folder: Path, name: str) -> Path:
    """Write ``configs/<name>.yaml`` in a run folder."""
    path = folder / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    add_written(path)
    return path


def nearest_reference(policies: Path, fraction: float = 0.25) -> Path:
    """The checkpoint in ``policies`` nearest to ``fraction`` of the run, without the one at its end."""
    fractions: dict[str, float] = json.loads((policies / "references.json").read_text(encoding="utf-8"))
    earlier = {name: reached for name, reached in fractions.items() if reached < 1.0}
    return policies / min(earlier, key=lambda name: abs(earlier[name] - fraction))


def equal_compute_steps(dpr_config: Path, sft_config: Path) -> int:
    """Number of optimizer steps of SFT that cost at least the FLOPs of the DPR phase.

    Counted in forward passes over sequences, since sequences of both phases answer prompts of one distribution.
    """
    dpr, sft = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (dpr_config, sft_config))
    passes = passes_of_a_step(dpr) * int(dpr["trainer"]["max_steps"])
    return max(1, math.ceil(passes / passes_of_a_step(sft)))


def on_cpu(config: Path) -> bool:
    """Whether a stage's config runs on the CPU."""
    return bool(yaml.safe_load(config.read_text(encoding="utf-8"))["trainer"].get("accelerator") == "cpu")


def passes_of_a_step(config: Mapping[str, Any]) -> float:
    """Number of forward passes over a sequence that one optimizer step costs, by the config of DPR or SFT.

    Training is three passes. DPR adds the sampling and scoring of a rollout, divided by the steps that use it; the
    all-actions estimator scores micro-batches again when a rollout has several.
    """
    data = config["data"]["init_args"]
    accumulate = int(config["trainer"].get("accumulate_grad_batches", 1))
    if "references" not in data:
        return float(TRAINING_PASSES * int(data["batch_size"]) * accumulate)
    models = 1 + len(data["references"])
    again = models if _scores_twice(config) else 0
    sequences = int(data["prompts_per_rollout"] * data["samples_per_prompt"])
    return sequences * (TRAINING_PASSES + again + (1 + models) / int(data.get("refresh_every", 1)))


def _scores_twice(config: Mapping[str, Any]) -> bool:
    several = int(config["trainer"].get("accumulate_grad_batches", 1)) > 1
    return several and config["model"]["init_args"].get("estimator") == "all_actions"


def continued_config(folder: Path, seed: int, sft_config: Path, sft: Path, steps: int) -> Path:
    """Write the config of an SFT run that starts from π_SFT, with the same data at a tenth of the learning rate."""
    config = yaml.safe_load(sft_config.read_text(encoding="utf-8"))
    config = move_paths(config, f"{folder}/sft", f"{folder}/continued_sft")
    config["model"]["init_args"]["policy"]["source"] = str(sft)
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] /= 10
    config["data"]["init_args"]["seed"] = seed + 1
    trainer = config["trainer"]
    trainer |= {"max_steps": steps, "val_check_interval": None, "limit_val_batches": 0}
    checkpoints = [entry for entry in trainer["callbacks"] if entry["class_path"].endswith("Checkpoints")]
    for callback in checkpoints:
        if "fractions" in callback["init_args"]:
            callback["init_args"]["fractions"] = []
    trainer["callbacks"] = checkpoints
    for logger in trainer["logger"]:
        if logger["class_path"].endswith("WandbLogger"):
            logger["init_args"]["name"] += "-continued"
    return write_config(config, folder, "continued_sft")
