"""The arms of ``dpr compare`` for one seed: each is trained and evaluated once, and its results are cached in files."""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data import PromptSet
from dpr_lightning.engine.decoding import Combine, single_model
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.verifiers import verifier_named
from dpr_lightning.experiments.arm_answers import Arm, ArmResult, Selection, evaluate_arms
from dpr_lightning.experiments.arm_specs import ArmSpec, Evaluation, Recipes, reward_of
from dpr_lightning.experiments.examples import examples_of
from dpr_lightning.experiments.findings import BASE
from dpr_lightning.experiments.flops import flops_of_a_step
from dpr_lightning.experiments.predictions import Promise, promises
from dpr_lightning.experiments.recipes import (
    answers_of,
    continued_config,
    move_paths,
    nearest_reference,
    stage_config,
    write_config,
)
from dpr_lightning.experiments.stages import STAGE_FILES, VERIFIER, fit
from dpr_lightning.folders import clear_run, whole_file
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.extrapolation import extrapolate_weights
from dpr_lightning.policies.inference_policy import best_device, frozen_policy
from dpr_lightning.reports.console import console
from dpr_lightning.rewards import DenseReward, RewardSpec, decode_time_optimum
from dpr_lightning.rewards.cache import content_hash


class SeedRun:
    """All arms of one seed, in one folder that holds ``base/`` and ``data/``."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        recipes: Recipes,
        samples: int,
    ) -> None:
        """Train π_SFT, unless it is trained already.

        Args:
            folder: of this seed.
            seed: of weights, order and samples.
            recipes: the configs that the arms change.
            samples: answers a prompt.
        """
        self.folder, self.seed, self.recipes = folder, seed, recipes
        self._sft: nn.Module | None = None
        self._dense: DenseReward | None = None
        self.sft_config = self._recipe(recipes.sft, recipes.sft_steps)
        self.policies = folder / "sft" / "policies"
        self.sft_key = self._stage(self.sft_config, folder / "sft", content_hash(folder / "data"))
        self.dpr_config = self._recipe(recipes.dpr, recipes.dpr_steps)
        config = _read(self.dpr_config)
        self.budget = self._flops_of_a_step(self.dpr_config) * config["trainer"]["max_steps"]
        self.references = [Path(folder).name for folder in config["data"]["init_args"]["references"]]
        self.evaluation = Evaluation(answers_of(config["data"]["init_args"]), samples, seed + 7919)
        self.reward = reward_of(config)

    def result(self, name: str, arm: ArmSpec) -> dict[str, Any]:
        """Scores of an arm by prompt, from the cache or measured now."""
        key = self._result_key(name, arm)
        return _cached(self.folder / "results" / f"{name}.json", key) or self._answer(name, arm, key)[0]

    def examples(self, name: str, arm: ArmSpec) -> dict[str, Any]:
        """``answers`` of an arm to the first prompts, and ``pairs`` of right and wrong ones."""
        key = self._result_key(name, arm)
        return (
            _cached(self.folder / "examples" / f"{name}.json", self._examples_key(key))
            or self._answer(name, arm, key)[1]
        )

    def _examples_key(self, result_key: str) -> str:
        """The key of an arm's examples: the key of its result, and the reward of each answer."""
        return _key(result_key, json.dumps([asdict(self.reward), self.references], sort_keys=True))

    def _result_key(self, name: str, arm: ArmSpec) -> str:
        """The key of an arm's result: of its training and of the evaluation. Trains the arm if that is still to do."""
        references = [self._checkpoint(reference).name for reference in arm.references or self.references]
        evaluation = [asdict(arm), asdict(self.evaluation), references]
        return _key(self._policy(name, arm)[1], json.dumps(evaluation, sort_keys=True))

    def _answer(self, name: str, arm: ArmSpec, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Answer all prompts by an arm, and write scores and examples to their files."""
        started = time.monotonic()
        tokenizer = load_tokenizer(str(self.policies / "final"))
        prompts = PromptSet.load(str(self.folder / "data" / "test.jsonl"), tokenizer)
        answered = self._evaluate(self._policy(name, arm)[0], arm, tokenizer, prompts)
        if self._dense is None:
            self._dense = self.dense([self._checkpoint(reference) for reference in self.references], self.reward)
        examples = {
            "key": self._examples_key(key),
            **examples_of(answered, prompts, self._dense, tokenizer, pairs=name == BASE),
        }
        result = {
            "key": key,
            **answered.summary(),
            "by_prompt": {measure: scores.tolist() for measure, scores in answered.scores().items()},
            "seconds": round(time.monotonic() - started, 1),
        }
        _write_json(self.folder / "examples" / f"{name}.json", examples)
        _write_json(self.folder / "results" / f"{name}.json", result)
        means = [f"{measure} {scores.mean():.3f}" for measure, scores in answered.scores().items()]
        console.print(f"seed {self.seed} · {name}: {', '.join(means)}, {result['seconds']:.0f} s", highlight=False)
        return result, examples

    def _policy(self, name: str, arm: ArmSpec) -> tuple[Path, str]:
        """The folder of an arm's policy, and the key of its training. Trains the arm if that is still to do."""
        if arm.train is None:
            checkpoint = "final" if arm.policy == "sft" else arm.policy
            return self._checkpoint(checkpoint), _key(self.sft_key, checkpoint)
        stage = self.folder / "arms" / name
        return stage / "policies" / "final", self._stage(self._config(name, arm), stage, self.sft_key)

    def flops(self, name: str, arm: ArmSpec) -> float:
        """Floating-point operations of an arm's training: those of one step, counted over a few, times its steps."""
        if arm.train is None:
            return 0.0
        config = self._config(name, arm)
        return self._flops_of_a_step(config) * int(_read(config)["trainer"]["max_steps"])

    def _flops_of_a_step(self, config: Path) -> float:
        """Floating-point operations of one step, cached for all numbers of steps."""
        options = _read(config)
        options["trainer"].pop("max_steps")
        key = _key(self.sft_key, json.dumps(options, sort_keys=True))
        cache = self.folder / "flops" / f"{config.stem}.json"
        if (cached := _cached(cache, key)) is not None:
            return float(cached["flops_of_a_step"])
        self._release()
        flops = flops_of_a_step(config)
        _write_json(cache, {"key": key, "flops_of_a_step": flops})
        return flops

    def promised(self, arms: Mapping[str, ArmSpec]) -> dict[str, Promise]:
        """The preview, before any training, of each arm that trains on a dense reward."""
        configs = {name: self._config(name, arm) for name, arm in arms.items() if arm.train == "dpr"}
        configs = {name: path for name, path in configs.items() if _learns_dense(path)}
        if not configs or self.recipes.preview_samples == 0:
            return {}
        options = {"samples": self.recipes.preview_samples, "limit": self.recipes.preview_prompts, "seed": self.seed}
        texts = [f"{name}: {path.read_text(encoding='utf-8')}" for name, path in configs.items()]
        key, cache = _key(self.sft_key, json.dumps(options), *texts), self.folder / "preview.json"
        if (cached := _cached(cache, key)) is not None:
            return {name: Promise(**promise) for name, promise in cached["promised"].items()}
        promised = promises(configs, self.folder / "data" / "development.jsonl", **options)
        _write_json(cache, {"key": key, "promised": {name: asdict(promise) for name, promise in promised.items()}})
        return promised

    def _recipe(self, packaged: str, steps: int | None) -> Path:
        return stage_config(packaged, self.recipes.home, self.folder, self.seed, {"trainer.max_steps": steps})

    def _config(self, name: str, arm: ArmSpec) -> Path:
        """Write the config of an arm's training to the arm's folder."""
        if arm.train == "continued_sft":
            path = continued_config(self.folder, self.seed, self.sft_config, self.policies / "final", steps=1)
        else:
            path = self.dpr_config if arm.train == "dpr" else self._recipe(self.recipes.self_play, None)
        config = _read(path)
        if arm.train == "dpr" and arm.references is not None:
            config["data"]["init_args"]["references"] = [
                str(self._checkpoint(reference)) for reference in arm.references
            ]
        _apply(config, arm.changes, name)
        moved = move_paths(config, f"{self.folder}/{arm.train}", f"{self.folder}/arms/{name}")
        path_of_arm = write_config(moved, self.folder, f"arm_{name}")
        if "trainer.max_steps" in arm.changes:
            return path_of_arm
        # As many steps as the budget allows.
        moved["trainer"]["max_steps"] = max(1, round(self.budget / self._flops_of_a_step(path_of_arm)))
        return write_config(moved, self.folder, f"arm_{name}")

    def _stage(self, config: Path, folder: Path, before: str) -> str:
        """Train, unless the same training is finished; an interrupted one goes on from its checkpoint."""
        key = _key(before, config.read_text(encoding="utf-8"))
        begun, done = folder / "begun.json", folder / "done.json"
        if _cached(done, key) is None:
            if folder.exists() and _cached(begun, key) is None:
                clear_run(folder, STAGE_FILES)
            _write_json(begun, {"key": key})
            self._release()
            fit(config)
            _write_json(done, {"key": key})
        return key

    def _release(self) -> None:
        """Free the memory of frozen models before a training."""
        self._sft = self._dense = None

    def _checkpoint(self, name: str) -> Path:
        """The folder of a checkpoint of the SFT run: by its name, or the one nearest to a fraction of the run."""
        if re.fullmatch(r"0?\.\d+", name):
            return nearest_reference(self.policies, float(name))
        folder = self.policies / name
        if not folder.is_dir():
            names = ", ".join(sorted(path.name for path in self.policies.iterdir() if path.is_dir()))
            raise InputError(f"The SFT run has no checkpoint {name!r}; its checkpoints are {names}.")
        return folder

    def _evaluate(
        self, folder: Path, arm: ArmSpec, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet
    ) -> ArmResult:
        if self._sft is None:
            self._sft = frozen_policy(str(self.policies / "final"))[0]
        references = [self._checkpoint(reference) for reference in arm.references or self.references]
        models = [frozen_policy(str(folder))[0]]
        if arm.extrapolate is not None:
            extrapolate_weights(models[0], frozen_policy(str(references[0]))[0], arm.extrapolate)
        combine: Combine = single_model
        if arm.optimum is not None:
            models += [frozen_policy(str(folder))[0] for folder in references]
            combine = decode_time_optimum(arm.optimum.reward, arm.optimum.beta)
        verifier = verifier_named(VERIFIER)
        assert verifier is not None
        selection = None
        if arm.best_of is not None:
            dense = self.dense(references, arm.best_of.reward)
            selection = Selection(dense, arm.best_of.candidates, arm.best_of.chunk)
        decoding = Arm(tuple(models), arm.temperature, combine, selection)
        evaluation = self.evaluation
        answered = evaluate_arms(
            {"arm": decoding}, tokenizer, prompts, verifier,
            sft=self._sft, options=evaluation.options, samples=evaluation.samples, seed=evaluation.seed,
        )  # fmt: skip
        return answered["arm"]

    def dense(self, references: list[Path], reward: RewardSpec) -> DenseReward:
        """The reward of this seed's π_SFT against ``references``, on the device where models run."""
        dense = DenseReward.from_folders(str(self.policies / "final"), [str(folder) for folder in references], reward)
        dense.frozen.to(best_device())
        return dense


def _learns_dense(config: Path) -> bool:
    """Whether a DPR arm learns from the token reward alone, for which alone there is a preview."""
    return "verifier" not in _read(config)["data"]["init_args"]


def _read(config: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
    return content


def _apply(config: dict[str, Any], changes: Mapping[str, Any], arm: str) -> None:
    for option, value in changes.items():
        *owners, key = option.split(".")
        target: Any = config
        for owner in owners:
            target = target.get(owner) if isinstance(target, dict) else None
            if not isinstance(target, dict):
                raise InputError(f"Arm {arm!r} changes {option!r}, and its config has no options in {owner!r} there.")
        target[key] = value


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _cached(path: Path, key: str) -> dict[str, Any] | None:
    """The content of a JSON file, if it was written with this key; None if not."""
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content if content["key"] == key else None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with whole_file(path) as stream:
        stream.write(json.dumps(content) + "\n")
