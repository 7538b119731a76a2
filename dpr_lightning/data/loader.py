"""A loader of demonstrations whose position in the epoch is saved and restored, to the batch."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from dpr_lightning.data.batching import TokenBudgetBatchSampler
from dpr_lightning.data.tokenized import TokenizedDataset
from dpr_lightning.types import DemonstrationBatch


class BatchLoader(Protocol):
    """What the trainer reads batches from: an iterable whose position in the epoch is in checkpoints."""

    def __len__(self) -> int:
        """Batches of this rank in an epoch."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """The next epoch, or the rest of one that was interrupted."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Called when a checkpoint is written: the position."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Called when a run resumes: continue at that position."""
        ...


class DemonstrationLoader:
    """Yields :class:`~dpr_lightning.types.DemonstrationBatch`.

    It is an iterable with a length and not a torch DataLoader: the trainer then neither exchanges its sampler for a
    distributed one nor prefetches, so the position in a checkpoint is that of the batch in use. The tokens are
    memory-mapped arrays; worker processes would only copy them.

    Args:
        dataset: of the examples.
        sampler: plans which examples form a batch.
        pad: token id of the padding.
        pin_memory: put batches into page-locked memory, from which copies to a GPU are fastest.
        batches_per_epoch: how many of the sampler's batches the trainer uses, where it has a limit; None: all.
        parts: number of micro-batches into which each of them is split.
    """

    def __init__(
        self,
        dataset: TokenizedDataset,
        sampler: TokenBudgetBatchSampler,
        pad: int,
        *,
        pin_memory: bool = False,
        batches_per_epoch: int | None = None,
        parts: int = 1,
    ) -> None:
        self.dataset = dataset
        self.batches = sampler
        self.pad = pad
        self.pin_memory = pin_memory
        self.batches_per_epoch = batches_per_epoch
        self.parts = parts
        self._next_epoch = sampler.epoch
        self._resuming = False

    def __len__(self) -> int:
        """Batches of this rank in an epoch."""
        return len(self.batches) * self.parts

    def __iter__(self) -> Iterator[DemonstrationBatch]:
        """The next epoch, or the rest of the one that was interrupted.

        The epoch changes when the first batch is taken, so a checkpoint written after the last batch still belongs
        to the epoch before, and an iterator that is never read changes nothing.
        """
        whole = len(self.batches)
        end = whole if self.batches_per_epoch is None else min(whole, self.batches_per_epoch)
        interrupted = self._resuming and self.batches.position < end
        self._resuming = False
        if not interrupted:
            self.batches.set_epoch(self._next_epoch)
        self._next_epoch = self.batches.epoch + 1
        for planned in self.batches:
            for indices in np.array_split(planned.indices, self.parts):
                # With fewer rows than parts the last parts are blank: every batch has the same number of parts.
                blank = planned.blank or len(indices) == 0
                selected = indices if len(indices) else planned.indices[-1:]
                batch = self.dataset.batch(selected, planned.num_tokens, self.pad, blank=blank)
                yield _pinned(batch) if self.pin_memory else batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position; plain numbers, so that a checkpoint stays loadable with ``weights_only``."""
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue an interrupted epoch, or start the one after a finished epoch; called when a run resumes.

        Raises:
            InputError: the data or the options that determine the order have changed in the middle of an epoch.
        """
        self.batches.load_state_dict(state)
        self._next_epoch = self.batches.epoch + 1
        self._resuming = True


def _pinned(batch: DemonstrationBatch) -> DemonstrationBatch:
    """The batch in page-locked memory, from which a GPU copies without waiting."""
    fields = {name: value.pin_memory() for name, value in batch._asdict().items() if value is not None}
    return DemonstrationBatch(**fields)
