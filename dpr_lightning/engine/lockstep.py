"""Forward passes that fetch weights from other ranks: made by all ranks, or by none."""

from collections.abc import Callable, Sequence
from types import TracebackType

import torch
from torch import nn

from dpr_lightning.distributed import max_over_ranks
from dpr_lightning.engine.weight_shards import fetches_weights


class Lockstep:
    """Keeps ranks together that need different numbers of forward passes; nothing where weights are whole.

    A layer in shards is gathered by all ranks at once: one whose answers are finished, or that has fewer parts to
    score, goes on with passes over a single token until nobody needs it any more. ::

        with Lockstep(models, idle) as lockstep:
            for part in parts:
                lockstep.begin()
                ...  # each model once, in the order that `idle` has

    Args:
        models: that are asked.
        idle: asks each of them once, about as little as can be; None: one token, in the order given.
    """

    def __init__(self, models: Sequence[nn.Module], idle: Callable[[], None] | None = None) -> None:
        self._needed = any(map(fetches_weights, models))
        self._idle = idle if idle is not None else lambda: minimal_forward(models)

    def begin(self) -> None:
        """Say that this rank is about to make a pass through every model, and wait for the others."""
        if self._needed:
            max_over_ranks(1)

    def __enter__(self) -> "Lockstep":
        """Begin with no pass made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Help the others to an end; after an error nobody can be helped."""
        while error is None and self._needed and max_over_ranks(0):
            self._idle()


@torch.no_grad()
def minimal_forward(models: Sequence[nn.Module]) -> None:
    """A forward pass over one token through each of the models."""
    for model in models:
        token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
        model(input_ids=token, logits_to_keep=1)
