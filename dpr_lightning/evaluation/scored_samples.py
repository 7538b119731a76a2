"""Answers of π_SFT to prompts, with the scores of their tokens by the frozen models."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.ground_truth import Verifier
from dpr_lightning.data.prompts import PromptSet
from dpr_lightning.evaluation.evaluated_answers import EvaluatedAnswers, collect_answers
from dpr_lightning.rewards import SFT, DenseReward
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import Rollouts, TokenScores


@dataclass(frozen=True)
class ScoredSamples:
    """Samples of π_SFT: one row a sample, those of a prompt in adjacent rows.

    Attributes:
        answers: with their scores by a verifier.
        scores: of their tokens, the divergence included, by π_SFT and the references of a reward.
        samples: of each prompt.
    """

    answers: EvaluatedAnswers
    scores: TokenScores
    samples: int

    def first(self, samples: int) -> "ScoredSamples":
        """The first so many of each prompt, as if no more had been sampled."""
        rows = [row for row in range(len(self.answers.texts)) if row % self.samples < samples]
        index = torch.tensor(rows)
        rollouts, scores = self.answers.rollouts, self.scores
        answers = replace(
            self.answers,
            rollouts=Rollouts(*(value[index] for value in rollouts)),
            texts=[self.answers.texts[row] for row in rows],
            scores=None if self.answers.scores is None else [self.answers.scores[row] for row in rows],
            lengths=[self.answers.lengths[row] for row in rows],
        )
        selected = scores._replace(
            policy_logprob=scores.policy_logprob[index],
            reference_logprobs=scores.reference_logprobs[:, index],
            divergence=scores.divergence[index],
            reward=scores.reward[index],
            mask=scores.mask[index],
        )
        return ScoredSamples(answers, selected, min(samples, self.samples))


def sample_and_score(
    reward: DenseReward,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    options: SamplingOptions,
    *,
    verifier: Verifier | None = None,
    num_samples: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    scored: Callable[[int], None] | None = None,
) -> ScoredSamples:
    """Sample π_SFT, and score the samples once.

    Args:
        reward: of π_SFT and the references.
        tokenizer: decodes the samples for the verifier.
        prompts: that are answered.
        options: of the sampler.
        verifier: scores the answers.
        num_samples: answers a prompt.
        seed: of the samples.
        progress: called with the number of sequences sampled.
        scored: called with the number of sequences scored.
    """
    with reward.frozen.use(SFT) as policy:
        answers = collect_answers(
            policy,
            tokenizer,
            prompts,
            options,
            verifier=verifier,
            num_samples=num_samples,
            seed=seed,
            progress=progress,
        )
    scores = reward.score(answers.rollouts.tokens, answers.rollouts.mask, divergence=True, progress=scored)
    return ScoredSamples(answers, scores, num_samples)
