"""The loader of a rollout algorithm: its position among the rollouts, and how a rollout is cut."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from dpr_lightning.engine import micro_batches
from dpr_lightning.types import RolloutBatch


class RolloutSource(Protocol):
    """Samples from the policy and scores."""

    @property
    def shares_prompts(self) -> bool:
        """Whether rows of a micro-batch that respond to one prompt share its prefill."""
        ...

    def scored_rollout(self, epoch: int, index: int) -> RolloutBatch:
        """This rank's share of rollout ``index`` of an epoch, sampled and with rewards; advantages are 0."""
        ...

    def with_actions(self, batch: RolloutBatch) -> RolloutBatch:
        """A micro-batch with the scores of every token, when the estimator needs them and the batch lacks them."""
        ...


@dataclass(frozen=True)
class CountedRollouts:
    """Implements :class:`RolloutSource` where memory is counted.

    Args:
        source: of a run.
        rollout: as large as the options allow, and scored.
        scoring: opens the phase in which the scores of micro-batches are counted.
    """

    source: RolloutSource
    rollout: Callable[[], RolloutBatch]
    scoring: Callable[[], AbstractContextManager[None]]

    @property
    def shares_prompts(self) -> bool:
        """As in the run."""
        return self.source.shares_prompts

    def scored_rollout(self, epoch: int, index: int) -> RolloutBatch:
        """The only rollout."""
        return self.rollout()

    def with_actions(self, batch: RolloutBatch) -> RolloutBatch:
        """As in the run."""
        with self.scoring():
            return self.source.with_actions(batch)


class RolloutLoader:
    """Yields the micro-batches of an epoch, in the order in which :attr:`learn_from` goes over the rollouts.

    It has a length, so that Lightning does not fetch ahead: a rollout is sampled *after* the step before it.

    Args:
        source: samples and scores.
        learn_from: the loop over this loader's rollouts; that of :class:`dpr_lightning.modules.RolloutAlgorithm`.
        rollouts_per_epoch: over all ranks.
        refresh_every: optimizer steps on a rollout.
        accumulate: micro-batches of an optimizer step.
        sum_over_ranks: adds a tensor up over ranks.

    Attributes:
        resumable: whether a checkpoint can be written after the micro-batch that was yielded last: not while steps of
            its rollout are to come.
    """

    def __init__(
        self,
        source: RolloutSource,
        learn_from: Callable[["RolloutLoader"], Iterator[RolloutBatch]],
        *,
        rollouts_per_epoch: int,
        refresh_every: int,
        accumulate: int,
        sum_over_ranks: Callable[[Tensor], Tensor],
    ) -> None:
        self.source = source
        self.learn_from = learn_from
        self.rollouts_per_epoch = rollouts_per_epoch
        self.refresh_every = refresh_every
        self.accumulate = accumulate
        self.sum_over_ranks = sum_over_ranks
        self.epoch = -1
        self.next_rollout = 0
        self._resuming = False
        self.resumable = True

    def __len__(self) -> int:
        """Micro-batches in an epoch."""
        return self.rollouts_per_epoch * self.refresh_every * self.accumulate

    def __iter__(self) -> Iterator[RolloutBatch]:
        """The micro-batches of the next epoch, or of the rest of the one that was interrupted."""
        return self.learn_from(self)

    def scored_rollouts(self) -> Iterator[RolloutBatch]:
        """Called by the loop: the rollouts of an epoch, each sampled and scored when the loop requests it.

        The epoch changes with its first rollout: the trainer stops at the last micro-batch and never runs an iterator
        to its end.
        """
        interrupted = self._resuming and self.next_rollout < self.rollouts_per_epoch
        self._resuming = False
        if not interrupted:
            self.epoch += 1
            self.next_rollout = 0
        while self.next_rollout < self.rollouts_per_epoch:
            index, self.next_rollout = self.next_rollout, self.next_rollout + 1
            yield self._with_count(self.source.scored_rollout(self.epoch, index))

    def _with_count(self, rollout: RolloutBatch) -> RolloutBatch:
        return rollout._replace(num_tokens=self.sum_over_ranks(rollout.mask.sum().float()).clamp_min(1.0))

    def micro_batches(self, rollout: RolloutBatch, *, last: bool, whole_groups: bool = False) -> Iterator[RolloutBatch]:
        """Called by the loop: the parts of one optimizer step, whose losses add up to that of the whole rollout.

        Args:
            rollout: with what the loss needs.
            last: whether no further step goes over it, so that the run can be resumed after this one.
            whole_groups: whether the rows of one prompt stay in one part.
        """
        self.resumable = last
        rows = micro_batches(
            rollout.tokens,
            rollout.mask,
            self.accumulate,
            shared=self.source.shares_prompts,
            groups=rollout.group_size if whole_groups else 1,
        )
        for part in rollout.split(rows, whole_groups=whole_groups):
            yield self.source.with_actions(part)

    def state_dict(self) -> dict[str, Any]:
        """Position, for a run that is resumed at the next rollout.

        A rollout in use is not saved: if it serves several steps, checkpoints wait until the loader is ``resumable``.
        """
        return {"epoch": self.epoch, "next_rollout": self.next_rollout}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the rollouts that were already used."""
        self.epoch = int(state["epoch"])
        self.next_rollout = int(state["next_rollout"])
        self._resuming = True
