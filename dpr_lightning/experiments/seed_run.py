"""One seed of an experiment: each arm is trained and evaluated once, and its results are cached in files."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data import PromptSet
from dpr_lightning.engine.decoding import Combine, single_model
from dpr_lightning.evaluation.verifiers import load_verifier
from dpr_lightning.experiments.arm_answers import Arm, ArmResult, Selection, evaluate_arm
from dpr_lightning.experiments.arm_configs import ArmConfigs
from dpr_lightning.experiments.arm_specs import BASE, ArmSpec
from dpr_lightning.experiments.cleaned_rows import CleanSpec, write_cleaned_rows
from dpr_lightning.experiments.examples import examples_of
from dpr_lightning.experiments.json_cache import cached, key_of, write_cached
from dpr_lightning.experiments.predictions import SeedPreview, preview_arms
from dpr_lightning.experiments.recipes import (
    Recipes,
    answers_of,
    checkpoint,
    learns_token_reward,
    read_config,
    references_of,
    reward_of,
)
from dpr_lightning.experiments.run_folder import train_once
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.extrapolation import extrapolate_weights
from dpr_lightning.policies.inference_policy import best_device, frozen_policy
from dpr_lightning.reports.console import console
from dpr_lightning.rewards import DenseReward, RewardSpec, decode_time_optimum
from dpr_lightning.rewards.cache import content_hash


@dataclass(frozen=True)
class ArmRun:
    """An arm of one seed: ``result`` with its scores by prompt, ``examples`` of its answers, ``flops`` it took."""

    result: dict[str, Any]
    examples: dict[str, Any]
    flops: float


class SeedRun:
    """All arms of one seed, in one folder that has ``base/`` and ``data/``."""

    def __init__(self, folder: Path, seed: int, recipes: Recipes, samples: int, arms: Mapping[str, ArmSpec]) -> None:
        """Train π_SFT, unless it is trained already.

        Args:
            folder: of this seed.
            seed: of weights, order and samples.
            recipes: the configs that the arms change.
            samples: answers a prompt.
            arms: all of the experiment: some start from what others leave behind.
        """
        self.folder, self.seed, self.recipes, self.samples, self.arms = folder, seed, recipes, samples, arms
        self._sft: nn.Module | None = None
        self._dense: DenseReward | None = None
        self.configs = ArmConfigs(folder, seed, recipes, arms)
        self.policies = self.configs.policies
        self.sft_key = self._train(self.configs.sft(), folder / BASE, content_hash(folder / "data"))
        self.configs.sft_key = self.sft_key
        recipe = read_config(self.configs.dpr())
        self.references = references_of(recipe, recipes.dpr)
        self.options, self.reward = answers_of(recipe), reward_of(recipe)

    def run(self, name: str, arm: ArmSpec) -> ArmRun:
        """Train and evaluate an arm, or read what is cached of it."""
        policy, trained = self._policy(name, arm)
        references = [checkpoint(self.policies, reference).name for reference in arm.references or self.references]
        evaluation = {"options": asdict(self.options), "samples": self.samples, "verifier": self.recipes.verifier}
        key = key_of(trained, json.dumps([asdict(arm), evaluation, references], sort_keys=True))
        examples_key = key_of(key, json.dumps([asdict(self.reward), self.references], sort_keys=True))
        result = cached(self._file("results", name), key)
        examples = cached(self._file("examples", name), examples_key)
        if result is None or examples is None:
            result, examples = self._answer(name, arm, policy)
            write_cached(self._file("examples", name), examples_key, examples)
            write_cached(self._file("results", name), key, result)
        return ArmRun(result, examples, self.configs.flops(name, arm))

    def preview(self, arms: Mapping[str, ArmSpec]) -> SeedPreview:
        """The preview, before any training, of each arm that learns from a token reward alone."""
        samples, limit = self.recipes.preview_samples, self.recipes.preview_prompts
        changed = {name: self.configs.changed(name, arm) for name, arm in arms.items() if arm.train is not None}
        configs = {name: config for name, config in changed.items() if learns_token_reward(config)}
        if not configs or samples == 0:
            return SeedPreview({}, None, "")
        options: dict[str, Any] = {"samples": samples, "limit": limit, "verifier": self.recipes.verifier}
        key = key_of(self.sft_key, json.dumps([options, configs]))
        if (saved := cached(self.folder / "preview.json", key)) is not None:
            return SeedPreview.from_dict(saved)
        preview = preview_arms(configs, self.folder / "data" / "development.jsonl", seed=self.seed, **options)
        write_cached(self.folder / "preview.json", key, preview.to_dict())
        return preview

    def _file(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{name}.json"

    def _answer(self, name: str, arm: ArmSpec, policy: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Answer all prompts by an arm: its result with scores, and its examples."""
        started = time.monotonic()
        tokenizer = load_tokenizer(str(self.policies / "final"))
        prompts = PromptSet.load(str(self.folder / "data" / "test.jsonl"), tokenizer)
        answered = self._evaluate(policy, arm, tokenizer, prompts)
        if self._dense is None:
            self._dense = self._dense_reward(self.references, self.reward)
        examples = examples_of(answered, prompts, self._dense, tokenizer, pairs=name == BASE)
        seconds = round(time.monotonic() - started, 1)
        scores = {measure: by_prompt.tolist() for measure, by_prompt in answered.scores().items()}
        means = ", ".join(f"{measure} {by_prompt.mean():.3f}" for measure, by_prompt in answered.scores().items())
        console.print(f"seed {self.seed} · {name}: {means}, {seconds:.0f} s", highlight=False)
        return {**answered.summary(), "by_prompt": scores, "seconds": seconds}, examples

    def _policy(self, name: str, arm: ArmSpec) -> tuple[Path, str]:
        """The folder of an arm's policy, and the key of its training. Trains the arm if that is still to do."""
        if arm.train is None:
            saved = "final" if arm.policy == BASE else arm.policy
            return checkpoint(self.policies, saved), key_of(self.sft_key, saved)
        stage = self.folder / name
        if not (stage / "done.json").is_file():
            self._sft = self._dense = None  # frees their memory for the training
        before = self.sft_key if arm.clean is None else self._clean(name, arm.clean)
        return stage / "policies" / "final", self._train(self.configs.arm(name, arm), stage, before)

    def _clean(self, name: str, clean: CleanSpec) -> str:
        """Write the cleaned demonstrations of an arm, and what they depend on; the key of all that."""
        policy, before = self.policies / "final", self.sft_key
        count = None
        if clean.by == "refused" and clean.policy != BASE:
            policy, before = self._policy(clean.policy, self.arms[clean.policy])
        elif isinstance(clean.rows, str):  # as many rows as another arm lists, which need not be trained for that
            other = self.arms[clean.rows].clean
            assert other is not None
            before = self._clean(clean.rows, other)
            count = int(json.loads(self.configs.cleaning(clean.rows).read_text(encoding="utf-8"))["listed"])
        record, output = self.configs.cleaning(name), self.configs.cleaned(name)
        key = key_of(before, json.dumps([asdict(clean), self.references, self.seed], sort_keys=True))
        if cached(record, key) is None or not output.is_file():
            references = [checkpoint(self.policies, reference) for reference in self.references]
            data = read_config(self.configs.sft())["data"]["init_args"]
            listing = write_cleaned_rows(
                clean,
                data["train"],
                output,
                columns=data.get("columns"),
                policy=policy,
                references=references,
                count=count,
                seed=self.seed,
            )
            write_cached(record, key, listing.to_dict())
        return key

    def _train(self, config: Path, folder: Path, before: str) -> str:
        """Train, unless the same training has ended; returns its key."""
        key = key_of(before, config.read_text(encoding="utf-8"))
        train_once(config, folder, key)
        return key

    def _evaluate(
        self, folder: Path, arm: ArmSpec, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet
    ) -> ArmResult:
        if self._sft is None:
            self._sft = frozen_policy(str(self.policies / "final"))[0]
        names = arm.references or self.references
        references = [str(checkpoint(self.policies, name)) for name in names]
        models = [frozen_policy(str(folder))[0]]
        if arm.extrapolate is not None:
            extrapolate_weights(models[0], frozen_policy(references[0])[0], arm.extrapolate)
        combine: Combine = single_model
        if arm.optimum is not None:
            models += [frozen_policy(reference)[0] for reference in references]
            combine = decode_time_optimum(arm.optimum.reward, arm.optimum.beta)
        selection = None
        if arm.best_of is not None:
            dense = self._dense_reward(names, arm.best_of.reward)
            selection = Selection(dense, arm.best_of.candidates, arm.best_of.chunk)
        return evaluate_arm(
            Arm(tuple(models), arm.temperature, combine, selection),
            tokenizer,
            prompts,
            load_verifier(self.recipes.verifier),
            sft=self._sft,
            options=self.options,
            samples=self.samples,
            seed=self.seed + 7919,
        )

    def _dense_reward(self, references: list[str], reward: RewardSpec) -> DenseReward:
        """The reward of this seed's π_SFT against checkpoints of its run, on the device where models run."""
        folders = [str(checkpoint(self.policies, name)) for name in references]
        dense = DenseReward.from_folders(str(self.policies / "final"), folders, reward)
        dense.frozen.to(best_device())
        return dense
