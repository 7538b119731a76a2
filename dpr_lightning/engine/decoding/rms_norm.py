"""Root mean square norms of a few rows, as kernels where there are some."""

from typing import Any

from torch import Tensor
from torch.nn.functional import rms_norm

from dpr_lightning.engine import kernels


class Norm:
    """``layer(hidden)`` of a root mean square norm, without gradient.

    Args:
        layer: of a known decoder; its weight does not change while this is in use.
    """

    def __init__(self, layer: Any) -> None:
        self._weight, self._epsilon = layer.weight, layer.variance_epsilon
        fits = kernels.has_kernels(self._weight.dtype, self._weight.device)
        self._compiled = fits and len(self._weight) % kernels.lanes() == 0

    def __call__(self, hidden: Tensor) -> Tensor:
        """The norm over the last dimension."""
        if self._compiled and kernels.serves(hidden, self._weight):
            return kernels.root_mean_square_norm(hidden, self._weight, self._epsilon)
        return rms_norm(hidden, self._weight.shape, self._weight, self._epsilon)
