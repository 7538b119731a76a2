"""What `dpr plan` counts of rollouts: the largest one that the options allow, sampled and scored without content."""

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
from dpr_lightning.rewards import DenseReward, RewardSpec
from dpr_lightning.rewards.dense_reward import reward_folders
from dpr_lightning.rollouts import decode_longest
from dpr_lightning.types import RolloutBatch


class RolloutMemory(ScoredRollouts):
    """Base of data with rollouts, whose memory is counted; a subclass sets the attributes."""

    sft: str
    references: list[str]
    reward_spec: RewardSpec
    prompts_per_rollout: int
    max_prompt_length: int
    dtype: Dtype
    attention: str
    frozen_weights: Weights

    def counted_batches(self, count: MemoryCount) -> RolloutLoader:
        """The micro-batches of a rollout of the longest prompts and answers, which serves two steps."""
        assert self.trainer is not None
        scoring = f"scoring by {1 + len(self.references)} frozen models"
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
        if self.sampler is None:
            at_once = min(self.sampling.batch_size, len(samples.tokens))
            with count.phase(f"sampling {at_once} answers at once"), learner.policy_for_inference() as policy:
                read = samples.tokens[::num_samples, :longest].tolist()
                decode_longest(policy, read, self.sampling, self.samples_per_prompt)
        with count.phase(scoring), learner.policy_for_inference():
            rollout = self._with_policy_logprob(self._score_for_learner(samples))
        outcome = None if self.verifier is None else torch.zeros(len(samples.tokens))
        return rollout._replace(group_size=num_samples, outcome=outcome)
