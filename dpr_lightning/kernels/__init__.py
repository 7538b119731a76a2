"""Inner loops in C++, for what PyTorch has no fast form of; compiled at the first use, and never needed."""

from dpr_lightning.kernels.decoding import (
    LaidOut,
    attend,
    can_decode,
    draw,
    is_watched,
    laid_out_bytes,
    lanes,
    root_mean_square_norm,
)

__all__ = [
    "LaidOut",
    "attend",
    "can_decode",
    "draw",
    "is_watched",
    "laid_out_bytes",
    "lanes",
    "root_mean_square_norm",
]
