"""Decoding of a batch: prefill, KV cache, and the forward pass of one token a row."""

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
