"""What `dpr plan` counts of rollouts: the largest one that the options allow, sampled and scored without content."""

from abc import abstractmethod
from functools import partial

import torch

from dpr_lightning.data.largest_batches import largest_samples
from dpr_lightning.data.policy_data import MemoryCount
from dpr_lightning.data.rollout_loader import CountedRollouts, RolloutLoader
from dpr_lightning.data.scored_rollouts import ScoredRollouts
from dpr_lightning.distributed import sum_over_ranks
from dpr_lightning.engine import longest_row
from dpr_lightning.policies import Weights
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.rewards import DenseReward, HeadScorer, OutcomeScorer, PolicyScorer, RewardSpec, ScorerSpec
from dpr_lightning.rewards.dense_reward import reward_folders
from dpr_lightning.rewards.policy_scorer import SCORER
from dpr_lightning.rollouts import decode_longest
from dpr_lightning.types import RolloutBatch


class RolloutMemory(ScoredRollouts):
    """Base of data with rollouts, whose memory is counted; a subclass sets the attributes."""

    sft: str
    references: list[str]
    reward_spec: RewardSpec
    scorer_spec: ScorerSpec | None
    prompts_per_rollout: int
    max_prompt_length: int
    dtype: Dtype
    attention: str
    frozen_weights: Weights

    @property
    @abstractmethod
    def shares_prompts(self) -> bool:
        """Whether the policy reads a prompt once for the rows of a micro-batch that answer it."""

    @abstractmethod
    def scored_rollout(self, epoch: int, index: int) -> RolloutBatch:
        """This rank's share of rollout ``index`` of an epoch, sampled by the policy after the last step, and scored."""

    def counted_batches(self, count: MemoryCount) -> RolloutLoader:
        """The micro-batches of a rollout of the longest prompts and answers, which serves two steps."""
        assert self.trainer is not None
        models = 1 + len(self.references) + (self.scorer_spec is not None)
        scoring = f"scoring by {models} frozen models"
        return RolloutLoader(
            CountedRollouts(self, partial(self._counted_rollout, count, scoring), partial(count.phase, scoring)),
            self._learner.learn_from,
            rollouts_per_epoch=1,
            refresh_every=2,
            accumulate=self.trainer.accumulate_grad_batches,
            sum_over_ranks=sum_over_ranks,
        )

    def _counted_rollout(self, count: MemoryCount, scoring: str) -> RolloutBatch:
        learner, num_samples, answer = self._learner, self._group_size, self.sampling.max_new_tokens
        longest = max(1, longest_row(learner.policy, self.max_prompt_length + answer) - answer)
        prompts = max(1, self.prompts_per_rollout // count.ranks)
        samples = largest_samples(prompts, num_samples, longest, answer)
        frozen = count.frozen_models(
            reward_folders(self.sft, self.references), self.dtype, self.attention, self.frozen_weights
        )
        self.reward = DenseReward(frozen, self.reward_spec)
        self.scorer = self._counted_scorer(count)
        if self.sampler is None:
            at_once = min(self.sampling.batch_size, len(samples.tokens))
            with count.phase(f"sampling {at_once} answers at once"), learner.policy_for_inference() as policy:
                read = samples.tokens[::num_samples, :longest].tolist()
                decode_longest(policy, read, self.sampling, self.samples_per_prompt)
        with count.phase(scoring), learner.policy_for_inference():
            rollout = self._with_policy_logprob(self._score_for_learner(samples))
            if self.scorer is not None:
                sft_logprob = rollout.sft_logprob.sum(1)
                self.scorer.score(rollout.tokens, rollout.mask, lambda: sft_logprob, self._budget)
        has_outcome = self.verifier is not None or self.scorer is not None
        outcome = torch.zeros(len(samples.tokens)) if has_outcome else None
        return rollout._replace(group_size=num_samples, outcome=outcome)

    def _counted_scorer(self, count: MemoryCount) -> OutcomeScorer | None:
        spec = self.scorer_spec
        if spec is None:
            return None
        if spec.head is not None:
            return HeadScorer(count.frozen_head(self.dtype))
        folders = {SCORER: spec.folder}
        frozen = count.frozen_models(folders, self.dtype, self.attention, self.frozen_weights)
        return PolicyScorer(frozen, spec.beta)
