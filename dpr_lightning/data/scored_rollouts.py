"""What happens to a rollout after it is sampled: rewards, scores of responses and the policy's log-probabilities."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.demonstrated_responses import DemonstratedResponses
from dpr_lightning.data.ground_truth import verifier_scores
from dpr_lightning.data.policy_data import Learner, PolicyDataModule
from dpr_lightning.data.prompts import PromptSet
from dpr_lightning.data.rewarded import rewarded
from dpr_lightning.data.rollout_loader import RolloutLoader
from dpr_lightning.engine import default_token_budget, sequence_logprobs
from dpr_lightning.errors import InputError, counted
from dpr_lightning.policies import special_tokens
from dpr_lightning.rewards import DenseReward, OutcomeScorer
from dpr_lightning.rollouts import ExternalSampler, SamplingOptions, decode_answers
from dpr_lightning.types import RolloutBatch, Rollouts


class RolloutLearner(Learner, Protocol):
    """The module that learns from rollouts."""

    needs_action_rewards: bool
    needs_demonstrations: bool
    whole_groups: bool

    def learn_from(self, rollouts: RolloutLoader) -> Iterator[RolloutBatch]:
        """Credit each rollout once, and yield the micro-batches of its steps."""
        ...


class ScoredRollouts(PolicyDataModule):
    """Base of data whose rollouts are scored by frozen models, and whole responses by a verifier or a learned scorer.

    A subclass sets the attributes; the module that learns is a :class:`RolloutLearner`.
    """

    prompts: PromptSet | None
    tokenizer: PreTrainedTokenizerBase
    reward: DenseReward | None
    verifier: Callable[[str, str, Mapping[str, Any]], float] | None
    sampling: SamplingOptions
    sampler: ExternalSampler | None
    precomputed: str | None
    token_budget: int | None
    samples_per_prompt: int
    _parts: int
    scorer: OutcomeScorer | None = None
    _demonstrated: DemonstratedResponses | None = None

    @property
    def _group_size(self) -> int:
        """Responses to a prompt: those sampled, and its demonstration where the module compares with it."""
        return self.samples_per_prompt + int(self._learner.needs_demonstrations)

    def _with_demonstrations(self, samples: Rollouts) -> Rollouts:
        """Add the demonstration of each prompt to its group, where the module compares with it."""
        if self._demonstrated is None:
            return samples
        scored = partial(sequence_logprobs, self._learner.policy, token_budget=self._budget)
        return self._demonstrated.join(samples, self.samples_per_prompt, int(self.tokenizer.pad_token_id), scored)

    def _with_policy_logprob(self, batch: RolloutBatch) -> RolloutBatch:
        """Add log π_θ of tokens that another distribution sampled; after another program's, it stands for behaviour."""
        off_policy = self.precomputed is not None or self.sampling.temperature != 1.0 or self.sampling.top_p < 1.0
        if not off_policy and self.sampler is None:
            return batch
        logprob = sequence_logprobs(self._learner.policy, batch.tokens, batch.mask, token_budget=self._budget)
        if self.sampler is not None:
            batch = batch._replace(behaviour_logprob=logprob, sampler_logprob=batch.behaviour_logprob)
        return batch._replace(policy_logprob=logprob) if off_policy else batch

    def _with_outcome(self, batch: RolloutBatch) -> RolloutBatch:
        """Add the score of each response, if there is a verifier or a scorer.

        Raises:
            InputError: a score is not finite; names the row.
        """
        assert self.prompts is not None
        if self.scorer is not None:
            self.scorer.to(self._device)
            outcome = self.scorer.score(
                batch.tokens, batch.mask, lambda: batch.sft_logprob.sum(1), token_budget=self._budget
            )
            self._check_finite(outcome, batch)
            return batch._replace(outcome=outcome.to(batch.reward.device))
        if self.verifier is None:
            return batch
        scores = verifier_scores(self.verifier, self.prompts, batch.prompt.tolist(), self._texts(batch))
        return batch._replace(outcome=torch.tensor(scores, device=batch.reward.device))

    def _texts(self, batch: RolloutBatch) -> list[str]:
        special = special_tokens(self.tokenizer, self._learner.policy)
        return decode_answers(batch.tokens, batch.mask, self.tokenizer, special)

    def _check_finite(self, outcome: Tensor, batch: RolloutBatch) -> None:
        wrong = (~outcome.isfinite()).nonzero().flatten().tolist()
        if wrong:
            assert self.prompts is not None
            row = wrong[0]
            raise InputError(
                f"`data.scorer` gives {float(outcome[row])} to the response {self._texts(batch)[row][:80]!r} to "
                f"{self.prompts.where(int(batch.prompt[row]))}, and to {counted(len(wrong), 'response')} of "
                f"{len(outcome):,}. Its weights are damaged, or overflow: set `data.dtype` to float32."
            )

    def _score_for_learner(self, rollouts: Rollouts) -> RolloutBatch:
        """Rewards, and with them those of every token where the estimator needs them and they can be held.

        Where a frozen model's distributions can only be held whole, those of several micro-batches would be too much:
        each is then scored again in its turn.
        """
        assert self.trainer is not None
        assert self.reward is not None
        parts = self.trainer.accumulate_grad_batches
        if not self._learner.needs_action_rewards or (parts > 1 and not self.reward.keeps_states):
            return self.score(rollouts)
        self.reward.frozen.to(self._device)
        return rewarded(rollouts, *self.reward.score_actions(rollouts.tokens, rollouts.mask, self._budget))

    @property
    def _budget(self) -> int | None:
        """Tokens to score at once; None: as many as the model's kind allows."""
        if self._parts == 1:
            return self.token_budget
        budget = self.token_budget if self.token_budget is not None else default_token_budget(self._learner.policy)
        return max(1, budget // self._parts)

    def score(self, rollouts: Rollouts, progress: Callable[[int], None] | None = None) -> RolloutBatch:
        """Rollouts with their rewards; advantages are still 0."""
        assert self.reward is not None
        self.reward.frozen.to(self._device)
        scores = self.reward.score(rollouts.tokens, rollouts.mask, token_budget=self._budget, progress=progress)
        return rewarded(rollouts, scores)

    def with_actions(self, batch: RolloutBatch) -> RolloutBatch:
        """Add the scores of every token when the estimator asks for them; only ever for one micro-batch."""
        if batch.actions is not None or not self._learner.needs_action_rewards:
            return batch
        assert self.reward is not None
        self.reward.frozen.to(self._device)
        return batch._replace(actions=self.reward.score_actions(batch.tokens, batch.mask, self._budget)[1])

    @property
    def _learner(self) -> RolloutLearner:
        assert self.trainer is not None
        return cast(RolloutLearner, self.trainer.lightning_module)

    @property
    def _device(self) -> torch.device:
        return next(self._learner.policy.parameters()).device
