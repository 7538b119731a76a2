"""Inner loops in C++, for what PyTorch has no fast form of; compiled at the first use, and never needed."""

from dpr_lightning.engine.kernels.attention_kernels import attend_rows, attend_rows_backward, attends_rows
from dpr_lightning.engine.kernels.calling import has_kernels, is_plain, lanes, serves
from dpr_lightning.engine.kernels.decoding_kernels import (
    LayerPromptCache,
    PackedWeight,
    attend,
    packed_bytes,
    root_mean_square_norm,
    sample_tokens,
)
from dpr_lightning.engine.kernels.training_kernels import Weighed, change_, gated_backward_, norm_backward, weigh

__all__ = [
    "LayerPromptCache",
    "PackedWeight",
    "Weighed",
    "attend",
    "attend_rows",
    "attend_rows_backward",
    "attends_rows",
    "change_",
    "gated_backward_",
    "has_kernels",
    "is_plain",
    "lanes",
    "norm_backward",
    "packed_bytes",
    "root_mean_square_norm",
    "sample_tokens",
    "serves",
    "weigh",
]
