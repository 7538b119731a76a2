"""Decoding of a batch: prefill, KV cache, and the forward pass of one token a row.

0.40 (toy, 512 rows) to 0.78 (SmolLM2-135M's shape, 64 rows) of the time of the library's cache (`python -m
benchmarks.ablation`).
"""

from dpr_lightning.engine.decoding.decode_batch import Combine, single_model
from dpr_lightning.engine.decoding.one_token import packed_bytes
from dpr_lightning.engine.decoding.routes import sampling_route
from dpr_lightning.engine.decoding.token_sampling import sample_tokens

__all__ = [
    "Combine",
    "packed_bytes",
    "sample_tokens",
    "sampling_route",
    "single_model",
]
