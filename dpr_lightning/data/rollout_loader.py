"""A loader that samples, scores and cuts: what the policy-gradient step reads."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from dpr_lightning.engine import micro_batches
from dpr_lightning.types import RolloutBatch


class RolloutSource(Protocol):
    """Where rollouts come from."""

    @property
    def shares_prompts(self) -> bool:
        """Whether rows of a micro-batch that answer one prompt have it read once."""
        ...

    def rollout(self, epoch: int, place: int) -> RolloutBatch:
        """This rank's share of rollout number ``place`` of an epoch, with rewards and advantages."""
        ...

    def with_actions(self, batch: RolloutBatch) -> RolloutBatch:
        """A micro-batch with the scores of every token, when the estimator needs them and the batch lacks them."""
        ...


class RolloutLoader:
    """Yields micro-batches; makes a new rollout every ``refresh_every`` optimizer steps.

    Each optimizer step goes over the whole rollout in ``accumulate`` micro-batches, whose losses add up to that of one
    big batch. It has a length, so that Lightning does not fetch ahead: a rollout is asked for *after* the step before.
    """

    def __init__(
        self,
        source: RolloutSource,
        *,
        rollouts_per_epoch: int,
        refresh_every: int,
        accumulate: int,
        sum_over_ranks: Callable[[Tensor], Tensor],
    ) -> None:
        """Read ``rollouts_per_epoch`` rollouts an epoch from ``source``."""
        self.source = source
        self.rollouts_per_epoch = rollouts_per_epoch
        self.refresh_every = refresh_every
        self.accumulate = accumulate
        self.sum_over_ranks = sum_over_ranks
        self.epoch = -1
        self.next_rollout = 0
        self._resuming = False
        self.resumable = True
        """Whether a checkpoint may be written: no, while steps of the present rollout are to come."""

    def __len__(self) -> int:
        """Micro-batches in an epoch."""
        return self.rollouts_per_epoch * self.refresh_every * self.accumulate

    def __iter__(self) -> Iterator[RolloutBatch]:
        """The next epoch, or what is left of the one that was interrupted.

        The epoch changes when its first rollout is asked for: the trainer stops at the last micro-batch and never runs
        an iterator to its end.
        """
        interrupted = self._resuming and self.next_rollout < self.rollouts_per_epoch
        self._resuming = False
        if not interrupted:
            self.epoch += 1
            self.next_rollout = 0
        while self.next_rollout < self.rollouts_per_epoch:
            rollout = self.source.rollout(self.epoch, self.next_rollout)
            self.next_rollout += 1
            num_tokens = self.sum_over_ranks(rollout.mask.sum().float()).clamp_min(1.0)
            rollout = rollout._replace(num_tokens=num_tokens)
            shared = self.source.shares_prompts
            for use in range(1, self.refresh_every + 1):
                self.resumable = use == self.refresh_every
                for rows in micro_batches(rollout.tokens, rollout.mask, self.accumulate, shared=shared):
                    yield self.source.with_actions(take_rows(rollout, rows))
            # Not kept while the next one is made: with the scores of every token it can be gigabytes.
            del rollout

    def state_dict(self) -> dict[str, Any]:
        """Position, for a run that goes on at the next rollout.

        A rollout in use is not kept: where it serves several steps, checkpoints wait until it is ``resumable`` again.
        """
        return {"epoch": self.epoch, "next_rollout": self.next_rollout}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the rollouts that were already used."""
        self.epoch = int(state["epoch"])
        self.next_rollout = int(state["next_rollout"])
        self._resuming = True


def take_rows(rollout: RolloutBatch, rows: Tensor) -> RolloutBatch:
    """A micro-batch of a rollout, cut to the longest of its rows; the rollout itself when it has no others."""
    if len(rows) == len(rollout.mask):
        return rollout
    mask = rollout.mask[rows]
    actions = int(mask.sum(1).amax()) if len(rows) else 0
    columns = torch.arange(mask.shape[1], device=mask.device)
    length = int((mask * columns).amax()) + 1 if len(rows) else 1

    def action(value: Tensor) -> Tensor:
        return value[rows, :actions]

    return rollout._replace(
        tokens=rollout.tokens[rows, :length],
        mask=mask[:, :length],
        terminated=rollout.terminated[rows],
        prompt=rollout.prompt[rows],
        behaviour_logprob=action(rollout.behaviour_logprob),
        sft_logprob=action(rollout.sft_logprob),
        reference_logprob=action(rollout.reference_logprob),
        reward=action(rollout.reward),
        advantage=action(rollout.advantage),
        outcome=None if rollout.outcome is None else rollout.outcome[rows],
        actions=None if rollout.actions is None else rollout.actions.take(rows, actions),
        sampler_logprob=None if rollout.sampler_logprob is None else action(rollout.sampler_logprob),
    )
