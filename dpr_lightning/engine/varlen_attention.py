"""Attention of packed rows by PyTorch alone, with ``attention: varlen``; its kernel has not been measured on a GPU."""

import inspect
import logging
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

log = logging.getLogger(__name__)
VARLEN = "varlen"
"""Its name among transformers' attention implementations."""


def varlen_inputs(start: Tensor, tokens: int, longest: int) -> dict[str, Any]:
    """Row bounds for :func:`attend`, as keyword arguments of a model's forward pass.

    They have the names that transformers uses for flash attention. The mask is not read; its shape keeps transformers
    from building one of all tokens by all tokens.

    Args:
        start: [B], first token of each row.
        tokens: of all rows.
        longest: tokens of the longest row.
    """
    bounds = torch.nn.functional.pad(start, (0, 1), value=tokens).int()
    no_mask = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=start.device)
    return {
        "attention_mask": no_mask,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: packed rows where their bounds are given, else `sdpa`.

    In half precision on a GPU by :func:`torch.nn.attention.varlen.varlen_attn`, elsewhere row by row.

    Args:
        module: the layer.
        query: [1, H, tokens, width] of all rows.
        key: [1, key heads, tokens, width].
        value: as ``key``.
        attention_mask: of rows that are not packed.
        more: ``scaling``, ``dropout``, and the arguments of :func:`varlen_inputs`.

    Returns:
        [1, tokens, H, width], and no attention weights.
    """
    bounds = more.get("cu_seq_lens_q")
    if bounds is None:
        result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return result
    # Under autocast rotary positions leave queries and keys in float32.
    query, key, value = (part[0].transpose(0, 1).to(value.dtype) for part in (query, key, value))
    scale, dropout = more.get("scaling"), float(more.get("dropout") or 0.0)
    by_kernel = dropout == 0 and _fits_kernel(query)
    _log_path(by_kernel)
    if by_kernel:
        mixed = _by_kernel(query, key, value, bounds, int(more["max_length_q"]), scale)
    else:
        mixed = _row_by_row(query, key, value, bounds, scale, dropout)
    return mixed.unsqueeze(0), None


@cache
def _log_path(by_kernel: bool) -> None:
    log.info("Packed rows attend by %s.", "PyTorch's varlen_attn" if by_kernel else "one call of PyTorch's sdpa a row")


def _fits_kernel(query: Tensor) -> bool:
    """Whether PyTorch's flash attention takes this type, width and device."""
    half, width = query.dtype in (torch.float16, torch.bfloat16), query.shape[-1]
    return query.is_cuda and half and width <= 256 and width % 8 == 0 and _has_kernel(query.device)


@cache
def _has_kernel(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _by_kernel(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float | None) -> Tensor:
    attention, shares_keys = _varlen_attention()
    more: dict[str, Any] = {"window_size": (-1, 0), "scale": scale}  # all before, none after
    if query.shape[1] != key.shape[1]:
        if shares_keys:
            more["enable_gqa"] = True
        else:
            key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    result: Tensor = attention(query, key, value, bounds, bounds, longest, longest, **more)
    return result


@cache
def _varlen_attention() -> tuple[Callable[..., Any], bool]:
    """PyTorch's function, and whether it takes fewer key heads than query heads, from 2.12 on."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters


def _row_by_row(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float | None, dropout: float
) -> Tensor:
    rows = []
    shares = query.shape[1] != key.shape[1]
    for start, end in pairwise(bounds.tolist()):
        queries, keys, values = (part[start:end].transpose(0, 1).unsqueeze(0) for part in (query, key, value))
        mixed = scaled_dot_product_attention(
            queries, keys, values, is_causal=True, dropout_p=dropout, scale=scale, enable_gqa=shares
        )
        rows.append(mixed[0].transpose(0, 1))
    return torch.cat(rows)


AttentionInterface.register(VARLEN, attend)
AttentionMaskInterface.register(VARLEN, sdpa_mask)
