"""Backward passes of layers, and what is made of logits, on a CPU, in float32 and bfloat16 (``learning.cpp``).

Each is one pass over memory; sums are float32. What a row gives does not depend on how many rows there are. Tensors are
those that :func:`dpr_lightning.engine.kernels.serves` is true of, and contiguous.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dpr_lightning.engine.kernels.calling import function, lanes, place


class Weighed(NamedTuple):
    """Of logits [n, V], each [n] in float32: the highest, the sum of e^(z − highest), log π of a token, the entropy."""

    highest: Tensor
    total: Tensor
    logprob: Tensor
    entropy: Tensor


def weigh(logits: Tensor, tokens: Tensor) -> Weighed:
    """See :class:`Weighed`; tokens of probability 0 add 0 to the entropy.

    Raises:
        IndexError: one of ``tokens`` [n] int64 is not of the vocabulary.
        ValueError: shapes that do not fit.
    """
    _expect(logits.dim() == 2 and logits.is_contiguous(), "logits [n, V] next to each other")
    _expect(tokens.shape == logits.shape[:1] and tokens.dtype == torch.int64 and tokens.is_cpu, "a token for each row")
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < logits.shape[1]:
        raise IndexError(f"A token out of {int(tokens.min())} to {int(tokens.max())} for {logits.shape[1]} logits.")
    made = torch.empty(4, len(logits), dtype=torch.float32, device="cpu")  # whatever others made the default
    tokens = tokens.contiguous()
    function("weigh", logits.dtype)(
        logits.data_ptr(),
        tokens.data_ptr(),
        *(part.data_ptr() for part in made),
        *logits.shape,
        torch.get_num_threads(),
    )
    return Weighed(*made)


def change_(logits: Tensor, tokens: Tensor, weighed: Weighed, slope: Tensor) -> None:
    """Logits [n, V] become slope_n·∂log π(a_n)/∂z = slope_n·(1[a_n] − π); exactly 0 where the slope [n] is 0."""
    _expect(logits.dim() == 2 and logits.is_contiguous(), "logits [n, V] next to each other")
    each = (slope, tokens, weighed.highest, weighed.total)
    _expect(all(part.shape == logits.shape[:1] and part.is_cpu for part in each), "a token and a slope for each row")
    tokens, slope = tokens.contiguous(), slope.float().contiguous()
    function("change", logits.dtype)(
        logits.data_ptr(),
        tokens.data_ptr(),
        weighed.highest.data_ptr(),
        weighed.total.data_ptr(),
        slope.data_ptr(),
        *logits.shape,
        torch.get_num_threads(),
    )


def gated_backward_(gate: Tensor, up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """silu(gate) ⊙ up, and what its ``gradient``, which is written over, is for gate and up."""
    _expect(gate.shape == up.shape == gradient.shape, "gates, what they gate and a gradient, of one shape")
    gate, up, gradient = gate.contiguous(), up.contiguous(), gradient.contiguous()
    product, of_gate = torch.empty_like(gate), torch.empty_like(gate)
    function("gated_backward", gate.dtype)(
        gate.data_ptr(),
        up.data_ptr(),
        gradient.data_ptr(),
        product.data_ptr(),
        of_gate.data_ptr(),
        gate.numel(),
        torch.get_num_threads(),
    )
    return product, of_gate, gradient


def norm_backward(
    hidden: Tensor, weight: Tensor, scale: Tensor, gradient: Tensor, wants_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and w, the second in float32, of y = w ⊙ n, n = x·s, s = 1/√(mean(x²) + ε).

    Args:
        hidden: x [..., width].
        weight: w [width]; the width is a multiple of :func:`dpr_lightning.engine.kernels.lanes`.
        scale: s [..., 1] in float32.
        gradient: ∂L/∂y, of the shape of x.
        wants_weight: whether the second is asked for.
    """
    width = hidden.shape[-1]
    _expect(weight.shape == (width,) and gradient.shape == hidden.shape, "a weight for each number of a row")
    _expect(width % lanes() == 0 and scale.numel() * width == hidden.numel(), "rows of whole vectors, a scale for each")
    hidden, gradient, scale = hidden.contiguous(), gradient.contiguous(), scale.float().contiguous()
    weight = weight.contiguous()
    of_hidden = torch.empty_like(hidden)
    of_weight = torch.empty(width, dtype=torch.float32, device="cpu") if wants_weight else None
    function("norm_backward", hidden.dtype)(
        hidden.data_ptr(),
        weight.data_ptr(),
        scale.data_ptr(),
        gradient.data_ptr(),
        of_hidden.data_ptr(),
        place(of_weight),
        scale.numel(),
        width,
        torch.get_num_threads(),
    )
    return of_hidden, of_weight


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"Expected {what}.")
