"""Decoding of a batch: prefill, KV cache, and the forward pass of one token a row."""

from dpr_lightning.engine.decoding.decode_batch import Combine, only
from dpr_lightning.engine.decoding.one_token import laid_out_bytes
from dpr_lightning.engine.decoding.routes import sampling_route
from dpr_lightning.engine.decoding.token_sampling import draw

__all__ = [
    "Combine",
    "draw",
    "laid_out_bytes",
    "only",
    "sampling_route",
]
