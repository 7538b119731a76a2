"""Products, norms and attention for one more token a row, on a CPU, in float32 and bfloat16 (``decoding.cpp``).

Sums are float32. What a row gives depends neither on how many rows there are nor on the number of threads.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from dpr_lightning.kernels.compiling import compiled

_SOURCE = Path(__file__).with_name("decoding.cpp")
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_THEN = {"none": 0, "silu": 1, "times": 2, "plus": 3}
_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "lay_out": [_POINTER] * 2 + [_LONG] * 2 + [_INT],
    "product": [_POINTER] * 5 + [_LONG] * 3 + [_INT] * 2,
    "norm": [_POINTER] * 3 + [_LONG] * 2 + [_FLOAT, _INT],
    "attend": [_POINTER] * 12 + [_LONG] * 8 + [_FLOAT, _INT],
    "draw": [_POINTER] * 4 + [_LONG] * 2 + [_FLOAT, _INT],
}


@cache
def _library() -> Any:
    made = compiled(_SOURCE)
    if made is not None:
        for name, arguments in _SIGNATURES.items():
            for kind in _TYPES.values():
                function = getattr(made, f"{name}_{kind}")
                function.argtypes, function.restype = arguments, None
    return made


def can_decode(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether tensors of this type and place are computed with here; compiles what it takes, at the first call."""
    return device.type == "cpu" and dtype in _TYPES and _library() is not None


def is_watched() -> bool:
    """Whether something looks at each operation of PyTorch, such as a counter: it would not see these."""
    return _get_current_dispatch_mode() is not None  # type: ignore[no-untyped-call]


@cache
def lanes() -> int:
    """Numbers that are computed at once: norms and attention take multiples of it."""
    return int(_library().lanes())


def laid_out_bytes(columns: int, width: int, dtype: torch.dtype) -> int:
    """Of the copy that :class:`LaidOut` makes of weights [columns, width]."""
    panel = int(_library().panel())
    return -(-columns // panel) * panel * width * dtype.itemsize


class LaidOut:
    """A copy of the weights of a linear layer, laid out for products with a few rows.

    Args:
        weight: [columns, width]; in bfloat16 the width is even.
        bias: [columns], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._columns, self._width = weight.shape
        self._dtype, self._bias = weight.dtype, None if bias is None else bias.detach().contiguous()
        if self._width * self._dtype.itemsize % 4:
            raise ValueError(f"Rows of {self._width} bfloat16 are no whole pairs.")
        if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
            raise ValueError(f"A bias {tuple(bias.shape)} of {bias.dtype} beside weights {tuple(weight.shape)}.")
        words = laid_out_bytes(self._columns, self._width, self._dtype) // 4
        self._panels = torch.empty(words, dtype=torch.int32)
        self._function = _function("product", self._dtype)
        weight = weight.detach().contiguous()
        threads = torch.get_num_threads()
        _function("lay_out", self._dtype)(
            weight.data_ptr(), self._panels.data_ptr(), self._width, self._columns, threads
        )

    def __call__(self, rows: Tensor, other: Tensor | None = None, then: str = "none") -> Tensor:
        """``rows`` [B, width] times the weights, and bias: [B, columns]; ``then`` silu, or times or plus ``other``."""
        if rows.dim() != 2 or rows.shape[1] != self._width or rows.dtype != self._dtype:
            raise ValueError(f"Rows {tuple(rows.shape)} of {rows.dtype} for weights of {self._width} {self._dtype}.")
        made = rows.new_empty(len(rows), self._columns)
        if other is not None:
            if other.shape != made.shape or other.dtype != made.dtype:
                raise ValueError(f"{tuple(other.shape)} of {other.dtype} beside a product {tuple(made.shape)}.")
            other = other.contiguous()
        rows = rows.contiguous()
        self._function(
            rows.data_ptr(),
            self._panels.data_ptr(),
            _place(self._bias),
            _place(other),
            made.data_ptr(),
            len(rows),
            self._width,
            self._columns,
            _THEN[then],
            torch.get_num_threads(),
        )
        return made


def root_mean_square_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``weight · hidden / √(mean(hidden²) + epsilon)`` over the last dimension of [..., width]."""
    width = hidden.shape[-1]
    if weight.shape != (width,) or weight.dtype != hidden.dtype or width % lanes():
        raise ValueError(f"A norm {tuple(weight.shape)} of {weight.dtype} over {tuple(hidden.shape)} {hidden.dtype}.")
    hidden = hidden.contiguous()
    made = torch.empty_like(hidden)
    _function("norm", hidden.dtype)(
        hidden.data_ptr(),
        weight.data_ptr(),
        made.data_ptr(),
        hidden.numel() // width,
        width,
        epsilon,
        torch.get_num_threads(),
    )
    return made


def attend(
    asked: Tensor,
    cosine: Tensor,
    turned: Tensor,
    kept: tuple[Tensor, Tensor],
    length: int,
    scale: float,
    bias: Tensor | None = None,
    prompts: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor] | None = None,
) -> Tensor:
    """Turn queries and keys to their positions, write keys and values behind the others, and attend.

    Args:
        asked: [B, (n + 2) · heads · width], of each row n · heads queries, then keys, then values; contiguous.
        cosine: [B, width], of the rows' positions.
        turned: [B, width], sines with the sign they get.
        kept: keys and values [≥ B, heads, room, width] of the rows, contiguous; written to.
        length: tokens of a row, the new one included; at most the room.
        scale: of the scores.
        bias: [B or 1, length] float32, added to the scores of a row's own tokens.
        prompts: keys and values [G, heads, P, width] that come before a row's own; [G, P] float32 that is added to
            their scores, or None; which prompt each row answers, [B] int64; the rows in an order [B] int64 in which
            those of a prompt are next to each other.

    Returns:
        what the heads have mixed, [B, n · heads · width].
    """
    keys, values = kept
    rows, (_, heads, room, width) = len(asked), keys.shape
    group = asked.shape[1] // (heads * width) - 2
    made = asked.new_empty(rows, group * heads * width)
    prompt_keys, prompt_values, prompt_bias, prompt, order = prompts or (None, None, None, None, None)
    _function("attend", asked.dtype)(
        asked.data_ptr(),
        cosine.data_ptr(),
        turned.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        _place(bias),
        _place(prompt_keys),
        _place(prompt_values),
        _place(prompt_bias),
        _place(prompt),
        _place(order),
        made.data_ptr(),
        rows,
        heads,
        group,
        width,
        room,
        length,
        0 if prompt_keys is None else prompt_keys.shape[2],
        0 if bias is None or len(bias) == 1 else bias.stride(0),
        scale,
        torch.get_num_threads(),
    )
    return made


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The token of each row at which the sum of probabilities, in the vocabulary's order, exceeds ``uniform``.

    Args:
        logits: [B, V], divided by ``temperature``.
        uniform: [B] in [0, 1), float64.

    Returns:
        tokens [B] and their log-probabilities [B] in float32; NaN where a row's logits are no numbers.
    """
    logits, uniform = logits.contiguous(), uniform.double().contiguous()
    chosen = torch.empty(len(logits), dtype=torch.int64)
    logprob = torch.empty(len(logits), dtype=torch.float32)
    _function("draw", logits.dtype)(
        logits.data_ptr(),
        uniform.data_ptr(),
        chosen.data_ptr(),
        logprob.data_ptr(),
        *logits.shape,
        temperature,
        torch.get_num_threads(),
    )
    return chosen, logprob


def _function(name: str, dtype: torch.dtype) -> Any:
    return getattr(_library(), f"{name}_{_TYPES[dtype]}")


def _place(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
