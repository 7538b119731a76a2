"""Which prompts a rollout takes, who writes the answers to them, and when."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.prompts import PromptSet
from dpr_lightning.policies import special_tokens
from dpr_lightning.rollouts import ExternalSampler, RolloutPrefetcher, SamplingOptions, sample
from dpr_lightning.types import Rollouts


@dataclass(frozen=True)
class RolloutSchedule:
    """Rollouts by number: an epoch is one pass over the prompts, in a different order, divided over the ranks.

    Args:
        prompts: to answer.
        tokenizer: of the policy.
        sampling: how it answers.
        samples_per_prompt: K.
        prompts_per_rollout: of one rollout, over all ranks.
        seed: of prompt order and samples.
        rank: of this process.
        ranks: how many there are.
        sampler: another program that writes the answers; None: this package does.
        ahead: writes a rollout while the policy learns from the one before; None: each is written when it is needed.
    """

    prompts: PromptSet
    tokenizer: PreTrainedTokenizerBase
    sampling: SamplingOptions
    samples_per_prompt: int
    prompts_per_rollout: int
    seed: int
    rank: int
    ranks: int
    sampler: ExternalSampler | None = None
    ahead: RolloutPrefetcher | None = None

    @property
    def rollouts_per_epoch(self) -> int:
        """Whole ones; prompts that are left over come in another epoch, whose order is another."""
        return len(self.prompts) // self.prompts_per_rollout

    def prompts_of(self, epoch: int, index: int) -> list[int]:
        """Prompts of this rank in rollout number ``index`` of an epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.prompts))
        share = self.prompts_per_rollout // self.ranks
        start = index * self.prompts_per_rollout + self.rank * share
        return [int(prompt) for prompt in order[start : start + share]]

    def rollout(self, epoch: int, index: int, policy: nn.Module, *, last: bool, epochs: int | None) -> Rollouts:
        """This rank's share of a rollout; where some are drawn ahead, the one after it is begun.

        Args:
            epoch: of the rollout.
            index: its number in it.
            policy: to sample from.
            last: whether the run's steps end with it.
            epochs: after so many the run ends; -1 or None: it does not.
        """
        if self.ahead is None:
            return self._sampled(epoch, index, policy)
        prefetched = self.ahead.take((epoch, index))
        samples = prefetched if prefetched is not None else self._sampled(epoch, index, policy)
        following = (epoch, index + 1) if index + 1 < self.rollouts_per_epoch else (epoch + 1, 0)
        if not last and following != (epochs, 0):
            self.ahead.begin(following, policy, partial(self._sampled, *following))
        return samples

    def answers(
        self,
        policy: nn.Module,
        prompts: list[int],
        seed: int,
        progress: Callable[[int], Any] | None = None,
        unwanted: Callable[[], bool] | None = None,
    ) -> Rollouts:
        """K answers to each of the chosen prompts.

        Args:
            policy: to sample from.
            chosen: places of prompts.
            seed: of the samples.
            progress: told how many answers are finished.
            unwanted: asked after each token whether nobody wants them any more; then it raises.
        """
        special = special_tokens(self.tokenizer, policy)
        if self.sampler is None:
            write: Callable[..., Rollouts] = partial(sample, pad_token=special.pad, unwanted=unwanted)
        else:
            write = partial(self.sampler, longest_prompt=max(map(len, self.prompts.tokens)))
        return write(
            policy,
            [self.prompts.tokens[prompt] for prompt in prompts],
            self.sampling,
            tokenizer=self.tokenizer,
            stop_tokens=special.stops,
            num_samples=self.samples_per_prompt,
            seed=seed,
            prompt_ids=prompts,
            progress=progress,
        )

    def _sampled(
        self, epoch: int, index: int, policy: nn.Module, unwanted: Callable[[], bool] | None = None
    ) -> Rollouts:
        seed = self.seed + 1_000_003 * (epoch + 1)
        return self.answers(policy, self.prompts_of(epoch, index), seed, unwanted=unwanted)
