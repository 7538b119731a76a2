"""Forward passes that fetch weights from other ranks: run by all ranks together."""

from collections.abc import Callable, Sequence
from types import TracebackType

import torch
from torch import nn

from dpr_lightning.distributed import max_over_ranks
from dpr_lightning.engine.weight_shards import fetches_weights


class Lockstep:
    """Equalises the number of forward passes over ranks; does nothing where weights are not sharded.

    A sharded layer is gathered by all ranks at once: a rank whose answers have ended, or that has fewer parts to score,
    runs passes over a single token until all ranks are done. ::

        with Lockstep(models, idle) as lockstep:
            for part in parts:
                lockstep.begin()
                ...  # each model once, in the order of `idle`

    Args:
        models: of the forward passes.
        idle: runs one cheap pass through each of them; None: over one token, in the order of ``models``.
    """

    def __init__(self, models: Sequence[nn.Module], idle: Callable[[], None] | None = None) -> None:
        self._needed = any(map(fetches_weights, models))
        self._idle = idle if idle is not None else lambda: minimal_forward(models)

    def begin(self) -> None:
        """Announce a pass through every model, and wait for the other ranks."""
        if self._needed:
            max_over_ranks(1)

    def __enter__(self) -> "Lockstep":
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Run idle passes until all ranks are done; none after an error."""
        while error is None and self._needed and max_over_ranks(0):
            self._idle()


@torch.no_grad()
def minimal_forward(models: Sequence[nn.Module]) -> None:
    """A forward pass over one token through each of the models."""
    for model in models:
        token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
        model(input_ids=token, logits_to_keep=1)
