"""Causal attention of whole rows and its gradients on a CPU, in bfloat16 (``attention.cpp``).

Scores are float32 and those of a few queries at a time; weights are rounded for their products with values.
"""

import ctypes

import torch
from torch import Tensor

from dpr_lightning.engine.kernels.calling import function, place, serves

_WIDTH = 16
"""Heads have a multiple of so many numbers."""


def attends_rows(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether these can be given to :func:`attend_rows`."""
    return (
        query.dtype == torch.bfloat16
        and query.shape[-1] % _WIDTH == 0
        and all(part.stride(-1) == 1 for part in (query, key, value))
        and serves(query, key, value)
    )


def attend_rows(query: Tensor, key: Tensor, value: Tensor, scale: float, seen: Tensor | None) -> Tensor:
    """softmax(scale·Q·Kᵀ)·V, where query t sees keys up to its own, S − T + t.

    Args:
        query: [B, H, T, D], of the last T of S tokens; T ≤ S.
        key: [B, K, S, D], each head for H/K of the queries' next to each other.
        value: as ``key``.
        scale: of the scores.
        seen: [B, 1, T, S], False for keys that a query does not see all the same; one that sees none gets a mean of
            values.

    Returns:
        [B, T, H·D].

    Raises:
        ValueError: shapes or types that do not fit.
    """
    rows, heads, length, width = query.shape
    mixed = query.new_empty(rows, length, heads * width)
    asked = _Asked(query, key, value, seen)
    function("attend_rows", query.dtype)(*asked.places, mixed.data_ptr(), asked.shape, scale, torch.get_num_threads())
    return mixed


def attend_rows_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    seen: Tensor | None,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, of the shape of each; they lie as [B, tokens, heads, D].

    Args:
        query: as in :func:`attend_rows`, like all before ``gradient``.
        key: the same.
        value: the same.
        scale: the same.
        seen: the same.
        gradient: of what that gave, [B, T, H·D].

    Raises:
        ValueError: shapes or types that do not fit.
    """
    rows, heads, length, width = query.shape
    if gradient.shape != (rows, length, heads * width) or gradient.dtype != query.dtype or not gradient.is_cpu:
        raise ValueError(f"A gradient {tuple(gradient.shape)} of {gradient.dtype} for queries {tuple(query.shape)}.")
    gradient = gradient.contiguous()
    made = tuple(part.new_empty(rows, part.shape[2], part.shape[1], width) for part in (query, key, value))
    asked = _Asked(query, key, value, seen)
    function("attend_rows_backward", query.dtype)(
        *asked.places,
        gradient.data_ptr(),
        *(part.data_ptr() for part in made),
        asked.shape,
        scale,
        torch.get_num_threads(),
    )
    query_grad, key_grad, value_grad = (part.transpose(1, 2) for part in made)
    return query_grad, key_grad, value_grad


class _Asked:
    """The arguments that both passes share; it keeps alive what they point to."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> None:
        rows, heads, length, width = query.shape
        key_heads, keys = key.shape[1:3]
        if (
            not attends_rows(query, key, value)
            or not key.shape == value.shape == (rows, key_heads, keys, width)
            or heads % key_heads
            or length > keys
            or (
                seen is not None
                and (seen.shape != (rows, 1, length, keys) or seen.dtype != torch.bool or not seen.is_cpu)
            )
        ):
            shapes = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in (query, key, value))
            raise ValueError(f"Attention of these does not fit: {shapes}.")
        if seen is not None and seen.stride(-1) != 1:
            seen = seen.contiguous()
        strides = [(ctypes.c_long * 3)(*part.stride()[:3]) for part in (query, key, value)]
        self.kept = (query, key, value, seen)
        self.shape = (ctypes.c_long * 6)(rows, key_heads, heads // key_heads, length, keys, width)
        mask = (place(seen), *((0, 0) if seen is None else (seen.stride(0), seen.stride(2))))
        tensors = (query, key, value)
        self.places = (
            *(given for part, stride in zip(tensors, strides, strict=True) for given in (part.data_ptr(), stride)),
            *mask,
        )
