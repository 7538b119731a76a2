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
    """What tells :func:`attend` where rows end, as keyword arguments of a model's forward pass.

    They have the names that transformers gives to those of flash attention. The mask is looked at by nobody, and of the
    one shape that transformers hands on instead of making one of all tokens by all tokens.

    Args:
        start: [B], of each row.
        tokens: in all rows.
        longest: row, in tokens.
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
    """An attention function of transformers: rows end to end where their bounds are given, else what `sdpa` does.

    In half precision on a GPU by :func:`torch.nn.attention.varlen.varlen_attn`, elsewhere row by row.

    Args:
        module: the layer.
        query: [1, H, tokens, width] of all rows.
        key: [1, key heads, tokens, width].
        value: the same.
        attention_mask: of rows that are not end to end.
        more: ``scaling``, ``dropout``, and what :func:`varlen_inputs` made.

    Returns:
        [1, tokens, H, width], and no weights.
    """
    bounds = more.get("cu_seq_lens_q")
    if bounds is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return found
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
    """What flash attention asks for."""
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
    found: Tensor = attention(query, key, value, bounds, bounds, longest, longest, **more)
    return found


@cache
def _varlen_attention() -> tuple[Callable[..., Any], bool]:
    """PyTorch's function, and whether query heads may share key heads there: from 2.12 on."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters


def _row_by_row(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float | None, dropout: float
) -> Tensor:
    made = []
    shares = query.shape[1] != key.shape[1]
    for start, end in pairwise(bounds.tolist()):
        asked, keys, values = (part[start:end].transpose(0, 1).unsqueeze(0) for part in (query, key, value))
        mixed = scaled_dot_product_attention(
            asked, keys, values, is_causal=True, dropout_p=dropout, scale=scale, enable_gqa=shares
        )
        made.append(mixed[0].transpose(0, 1))
    return torch.cat(made)


AttentionInterface.register(VARLEN, attend)
AttentionMaskInterface.register(VARLEN, sdpa_mask)
