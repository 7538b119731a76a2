"""Inner loops of decoding in C++, compiled at the first use; optional, PyTorch's operations do the same work."""

from dpr_lightning.engine.kernels.calling import has_kernels, is_plain, lanes, serves
from dpr_lightning.engine.kernels.decoding_kernels import (
    LayerPromptCache,
    PackedWeight,
    attend,
    packed_bytes,
    root_mean_square_norm,
    sample_tokens,
)

__all__ = [
    "LayerPromptCache",
    "PackedWeight",
    "attend",
    "has_kernels",
    "is_plain",
    "lanes",
    "packed_bytes",
    "root_mean_square_norm",
    "sample_tokens",
    "serves",
]
