"""Inner loops in C++, for what PyTorch has no fast form of; compiled at the first use, and never needed."""

from dpr_lightning.engine.kernels.attention_kernels import attend_rows, attend_rows_backward, attends_rows
from dpr_lightning.engine.kernels.calling import has_kernels, is_plain, lanes, serves
from dpr_lightning.engine.kernels.decoding_kernels import (
    LaidOut,
    PromptsOfLayer,
    attend,
    draw,
    laid_out_bytes,
    root_mean_square_norm,
)
from dpr_lightning.engine.kernels.training_kernels import Weighed, change_, gated_backward_, norm_backward, weigh

__all__ = [
    "LaidOut",
    "PromptsOfLayer",
    "Weighed",
    "attend",
    "attend_rows",
    "attend_rows_backward",
    "attends_rows",
    "change_",
    "draw",
    "gated_backward_",
    "has_kernels",
    "is_plain",
    "laid_out_bytes",
    "lanes",
    "norm_backward",
    "root_mean_square_norm",
    "serves",
    "weigh",
]
