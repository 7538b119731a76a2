"""Inner loops of decoding in C++, compiled at the first use; optional, PyTorch's operations do the same work.

0.50 (toy, 16 rows) to 0.93 (SmolLM2-135M's shape, 64 rows) of the time of decoding without them, in float32 with AVX2
(`python -m benchmarks.ablation`); 0.58 in bfloat16 with AVX-512 (docs/performance.md).
"""

from dpr_lightning.engine.kernels.calling import has_kernels, is_plain, lanes, serves
from dpr_lightning.engine.kernels.decoding_kernels import (
    LayerPromptCache,
    PackedWeight,
    attend,
    packed_bytes,
    root_mean_square_norm,
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
    "serves",
]
