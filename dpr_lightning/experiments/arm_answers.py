"""The answers of an arm: policies and controls answer the same prompts, paired by prompt."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data import PromptSet
from dpr_lightning.data.ground_truth import Verifier
from dpr_lightning.engine.decoding import Combine, single_model
from dpr_lightning.evaluation.evaluated_answers import EvaluatedAnswers, collect_answers, judge_answers
from dpr_lightning.evaluation.selection import best_of
from dpr_lightning.policies import special_tokens
from dpr_lightning.progress import progress_bar
from dpr_lightning.rewards import DenseReward
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import Rollouts


@dataclass(frozen=True)
class Selection:
    """Picks the best of ``candidates`` answers by ``dense``, every ``chunk`` tokens; None: once, at the end."""

    dense: DenseReward
    candidates: int
    chunk: int | None

    def score(self, rollouts: Rollouts) -> Tensor:
        """Total reward of each row, nats."""
        return self.dense.score(rollouts.tokens, rollouts.mask).reward.sum(1)


@dataclass(frozen=True)
class Arm:
    """A policy, or several that ``combine`` turns into one distribution, and the temperature of its samples."""

    models: tuple[nn.Module, ...]
    temperature: float = 1.0
    combine: Combine = single_model
    selection: Selection | None = None


@dataclass(frozen=True)
class ArmResult:
    """Greedy and sampled answers of one arm to the same prompts; an arm with a Selection has no greedy answers."""

    greedy: EvaluatedAnswers | None
    sampled: EvaluatedAnswers
    samples: int

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the scores that the arm has: ``sampled``, and ``greedy`` unless answers are selected."""
        return ("sampled",) if self.greedy is None else ("greedy", "sampled")

    def by_prompt(self, measure: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Mean score of each prompt, [N]."""
        answers = self.greedy if measure == "greedy" else self.sampled
        assert answers is not None
        scores = np.asarray(answers.scores, dtype=np.float64)
        grouped = scores.reshape(-1, 1 if measure == "greedy" else self.samples)
        return np.asarray(grouped.mean(axis=1), dtype=np.float64)

    def scores(self) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """By measure, the mean score of each prompt, [N]."""
        return {measure: self.by_prompt(measure) for measure in self.measures}

    def summary(self) -> dict[str, float | None]:
        """Accuracy greedy and sampled, mean length of samples in tokens, reverse KL to π_SFT in nats a response.

        The KL is None at temperature 0, where samples do not estimate it.
        """
        drift = self.sampled.reverse_kl
        return {
            "greedy": None if self.greedy is None else float(self.by_prompt("greedy").mean()),
            "sampled": float(self.by_prompt("sampled").mean()),
            "length": self.sampled.length,
            "reverse_kl": float(np.mean(drift)) if drift else None,
        }


def evaluate_arm(
    arm: Arm,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    verifier: Verifier,
    *,
    sft: nn.Module,
    options: SamplingOptions,
    samples: int,
    seed: int,
) -> ArmResult:
    """Answer all prompts by one arm, greedily once and ``samples`` times at its temperature.

    ``options`` determine where answers end. All arms with one ``seed`` sample with the same random numbers.
    """
    with progress_bar("evaluation", len(prompts) * (1 + samples)) as advance:
        if arm.selection is None:

            def answer(temperature: float, count: int) -> EvaluatedAnswers:
                return collect_answers(
                    arm.models,
                    tokenizer,
                    prompts,
                    replace(options, temperature=temperature),
                    verifier=verifier,
                    num_samples=count,
                    seed=seed,
                    combine=arm.combine,
                    sft=sft,
                    progress=advance,
                )

            return ArmResult(answer(0.0, 1), answer(arm.temperature, samples), samples)
        special = special_tokens(tokenizer, arm.models[0])
        picked = best_of(
            arm.models[0],
            arm.selection.score,
            prompts.tokens,
            replace(options, temperature=arm.temperature),
            candidates=arm.selection.candidates,
            chunk=arm.selection.chunk,
            stop_tokens=special.stops,
            pad_token=special.pad,
            num_samples=samples,
            seed=seed,
            tokenizer=tokenizer,
            progress=advance,
        )
        return ArmResult(None, judge_answers(picked, tokenizer, special, prompts, verifier=verifier), samples)
