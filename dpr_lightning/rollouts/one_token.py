"""One more token for every row, through a decoder of a known kind, in fewer and larger steps than its own forward."""

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention

from dpr_lightning.policies import fetches_weights, inside_of_adapters, is_known_decoder
from dpr_lightning.rollouts.cache import RoomyLayer, growing_cache

log = logging.getLogger(__name__)
FEW_ROWS, MANY_WEIGHTS = range(8, 64), 1 << 16
"""Rows, and weights of a layer from which on, a float32 product on a CPU is faster with the weights on the left: up to
three times (docs/performance.md)."""
_equal: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a model's logits were found to be the same in both ways."""


class OneTokenPass:
    """Logits of the next token, for rows whose keys and values so far lie in a cache of :class:`RoomyLayer`.

    It calls the model's own modules, so that adapters act, and differs from the model's forward in what lies between:
    the queries that share a key head are attended to as if they were positions of one head, so that keys are read once
    and never copied; masks and positions are made once a step; and few rows are multiplied with the weights on the
    left.

    Args:
        model: for which :func:`knows` is true.
    """

    def __init__(self, model: nn.Module) -> None:
        held = inside_of_adapters(model)
        self._decoder = held.model
        self._embedding, self._head = held.get_input_embeddings(), held.get_output_embeddings()

    def __call__(self, tokens: Tensor, position: Tensor, mask: Tensor | None, layers: Sequence[Any]) -> Tensor:
        """Logits [B, V] after one more token a row.

        Args:
            tokens: [B].
            position: [B], of these tokens in their rows.
            mask: [B, T+1], False where a row has no token; None: nowhere.
            layers: keys and values of T tokens a row; those of the new ones are written behind them.
        """
        hidden = self._embedding(tokens)
        cosine, sine = self._decoder.rotary_emb(hidden.unsqueeze(1), position.unsqueeze(1))
        # The second half of a head turns the first the other way: the sign goes into the table.
        half = sine.shape[-1] // 2
        turned = torch.cat([-sine[..., :half], sine[..., half:]], -1)
        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=hidden.dtype, device=mask.device)
            bias = bias.masked_fill_(~mask, float("-inf"))[:, None, None]
        for layer, held in zip(self._decoder.layers, layers, strict=True):
            hidden = hidden + _attend(layer.self_attn, _norm(layer.input_layernorm, hidden), cosine, turned, bias, held)
            inner, mlp = _norm(layer.post_attention_layernorm, hidden), layer.mlp
            gated = mlp.act_fn(_product(mlp.gate_proj, inner)) * _product(mlp.up_proj, inner)
            hidden = hidden + _product(mlp.down_proj, gated)
        return _product(self._head, _norm(self._decoder.norm, hidden))


def _attend(
    attention: Any, hidden: Tensor, cosine: Tensor, turned: Tensor, bias: Tensor | None, held: RoomyLayer
) -> Tensor:
    rows, width = len(hidden), attention.head_dim
    query, key, value = (
        _product(part, hidden).reshape(rows, -1, width)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    keys, values = held.update(_rotate(key, cosine, turned).unsqueeze(2), value.unsqueeze(2))
    grouped = _rotate(query, cosine, turned).view(rows, keys.shape[1], -1, width)
    seen = scaled_dot_product_attention(grouped, keys, values, attn_mask=bias, scale=attention.scaling)
    return _product(attention.o_proj, seen.reshape(rows, -1))


def _rotate(heads: Tensor, cosine: Tensor, turned: Tensor) -> Tensor:
    """Rotary positions of heads [B, H, width]."""
    return torch.addcmul(heads * cosine, heads.roll(heads.shape[-1] // 2, -1), turned)


def _norm(layer: Any, hidden: Tensor) -> Tensor:
    """``layer(hidden)`` in fewer operations."""
    weight, epsilon = layer.weight, layer.variance_epsilon
    if not hidden.is_cpu or hidden.dtype != torch.float32:
        return rms_norm(hidden, weight.shape, weight, epsilon)
    # A CPU takes `rms_norm` apart: 52 µs for 16 rows of 128, and 22 so (one thread).
    length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
    squares = torch.addcmul(hidden.new_full((), epsilon), length, length, value=1 / hidden.shape[-1])
    return (hidden * squares.rsqrt_()).mul_(weight)


def _product(layer: nn.Module, rows: Tensor) -> Tensor:
    """``layer(rows)`` of [B, width]."""
    if type(layer) is not nn.Linear or rows.dtype != torch.float32 or not rows.is_cpu:
        return layer(rows)  # type: ignore[no-any-return]
    if len(rows) not in FEW_ROWS or layer.weight.numel() < MANY_WEIGHTS:
        return linear(rows, layer.weight, layer.bias)
    found = torch.mm(layer.weight, rows.t()).t()
    return found if layer.bias is None else found + layer.bias


def knows(model: nn.Module) -> bool:
    """Whether :class:`OneTokenPass` gives the logits of ``model``: of a known kind, whole, and found to be equal."""
    held = inside_of_adapters(model)
    if not is_known_decoder(model) or fetches_weights(model):
        return False
    called = held.get_input_embeddings()
    if any(_has_hooks(module) for module in model.modules() if module is not called):
        return False
    if model not in _equal:
        _equal[model] = _gives_the_same(model)
        if not _equal[model]:
            log.warning(
                "This %s does not compute what others do; its own forward pass writes its answers.",
                held.config.model_type,
            )
    return _equal[model]


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


@torch.no_grad()
def _gives_the_same(model: nn.Module) -> bool:
    """Compare both ways on a few tokens."""
    model_: Any = model
    tokens = torch.arange(1, 5, device=model_.device).view(2, 2) % model_.config.vocab_size
    cache = growing_cache(model, 3)
    model_(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    expected = model_(input_ids=torch.cat([tokens, tokens[:, :1]], 1), use_cache=False).logits[:, -1].float()
    found = OneTokenPass(model)(tokens[:, 0], tokens.new_full((2,), 2), None, cache.layers).float()
    allowed = 1e-3 if torch.finfo(model_.dtype).bits >= 32 else 5e-2
    spread = (expected - expected.mean(-1, keepdim=True)).abs().amax()
    return bool((found - expected).abs().amax() <= allowed * spread + 1e-6)
