"""Root mean square norms of a few rows."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from dpr_lightning.engine import kernels


class Norm:
    """``layer(hidden)`` of a root mean square norm, without gradient, in fewer operations.

    Args:
        layer: of a known decoder; its weight does not change while this is in use.
    """

    def __init__(self, layer: Any) -> None:
        self._weight, self._epsilon = layer.weight, layer.variance_epsilon
        fits = kernels.has_kernels(self._weight.dtype, self._weight.device)
        self._compiled = fits and len(self._weight) % kernels.lanes() == 0

    def __call__(self, hidden: Tensor) -> Tensor:
        """The norm over the last dimension."""
        weight, epsilon = self._weight, self._epsilon
        if not hidden.is_cpu:
            return rms_norm(hidden, weight.shape, weight, epsilon)
        if self._compiled and kernels.serves(hidden, weight):
            return kernels.root_mean_square_norm(hidden, weight, epsilon)
        # On a CPU `rms_norm` is several operations: 52 µs for 16 rows of 128 in float32, and 22 this way (one thread).
        wide = hidden.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        squares = torch.addcmul(wide.new_full((), epsilon), length, length, value=1 / hidden.shape[-1])
        return (wide * squares.rsqrt_()).mul_(weight).to(hidden.dtype)
