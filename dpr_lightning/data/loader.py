"""A loader of demonstrations that a killed run takes up again at the very batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dpr_lightning.data.batching import TokenBudgetBatchSampler
from dpr_lightning.data.tokenized import TokenizedDataset
from dpr_lightning.types import DemonstrationBatch


class DemonstrationLoader:
    """Yields :class:`~dpr_lightning.types.DemonstrationBatch`.

    It is an iterable with a length and not a torch DataLoader: the trainer then neither exchanges its sampler for a
    distributed one nor fetches ahead, so the position that a checkpoint keeps is that of the batch in use. The tokens
    lie in memory-mapped arrays; worker processes would only copy them.

    Args:
        dataset: what to read.
        sampler: which examples make a batch.
        pad: token id of the padding.
        pin_memory: put batches where a GPU copies them from fastest.
        batches_per_epoch: of the sampler's batches, where the trainer has a limit of its own.
        parts: that each of these is handed out in, one after the other.
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
        """The next epoch, or what is left of the one that was interrupted.

        The epoch changes when the first batch is asked for, so a checkpoint written after the last batch still belongs
        to the epoch before, and an iterator that nobody reads changes nothing.
        """
        whole = len(self.batches)
        end = whole if self.batches_per_epoch is None else min(whole, self.batches_per_epoch)
        interrupted = self._resuming and self.batches.position < end
        self._resuming = False
        if not interrupted:
            self.batches.set_epoch(self._next_epoch)
        self._next_epoch = self.batches.epoch + 1
        for planned in self.batches:
            for places in np.array_split(planned.places, self.parts):
                # Fewer rows than parts: the last ones keep the count, and teach nothing.
                blank = planned.blank or len(places) == 0
                held = places if len(places) else planned.places[-1:]
                batch = self.dataset.batch(held, planned.num_tokens, self.pad, blank=blank)
                yield DemonstrationBatch(*(value.pin_memory() for value in batch)) if self.pin_memory else batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position; plain numbers, so that a checkpoint stays loadable with ``weights_only``."""
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up an interrupted epoch, or begin the one after a finished one.

        Raises:
            InputError: the data or the options that make the order have changed in the middle of an epoch.
        """
        self.batches.load_state_dict(state)
        self._next_epoch = self.batches.epoch + 1
        self._resuming = True
