"""One more token for every row, through a decoder of a known kind, in fewer and larger steps than its own forward."""

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from dpr_lightning.functional import rotate, turned_sine
from dpr_lightning.policies import (
    fetches_weights,
    inside_of_adapters,
    is_known_decoder,
    is_silu,
    last_logits,
    multiplies_bfloat16,
)
from dpr_lightning.rollouts.cache import RoomyLayer, growing_cache
from dpr_lightning.rollouts.products import Product
from dpr_lightning.rollouts.prompt_keys import PromptKeys

log = logging.getLogger(__name__)
_equal: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a model's logits were found to be the same in both ways."""


class OneTokenPass:
    """Logits of the next token, for rows whose keys and values so far lie in a cache of :class:`RoomyLayer`.

    It calls the model's own modules, so that adapters act, and differs from the model's forward in what lies between:
    the queries that share a key head are attended to as if they were positions of one head, so that keys are read once
    and never copied; masks and positions are made once a step; and weights on a CPU are laid out once for many steps
    (:class:`Product`).

    Args:
        model: for which :func:`knows` is true; its weights stay as they are while this is in use.
    """

    def __init__(self, model: nn.Module) -> None:
        held = inside_of_adapters(model)
        self._decoder = held.model
        self._embedding, self._head = held.get_input_embeddings(), Product(held.get_output_embeddings())
        self._layers = [_Layer(place, layer) for place, layer in enumerate(self._decoder.layers)]

    def __call__(
        self,
        tokens: Tensor,
        position: Tensor,
        mask: Tensor | None,
        layers: Sequence[Any],
        prompts: PromptKeys | None = None,
    ) -> Tensor:
        """Logits [B, V] after one more token a row.

        Args:
            tokens: [B].
            position: [B], of these tokens in their rows.
            mask: [B, T+1], False where a row has no token; None: nowhere.
            layers: keys and values of T tokens a row; those of the new ones are written behind them.
            prompts: what stands before them, where it is not among them.
        """
        hidden = self._embedding(tokens)
        cosine, sine = self._decoder.rotary_emb(hidden.unsqueeze(1), position.unsqueeze(1))
        seen = _Seen(cosine, turned_sine(sine), mask, prompts)
        for layer, held in zip(self._layers, layers, strict=True):
            hidden = layer(hidden, seen, held)
        return self._head(_norm(self._decoder.norm, hidden))

    @property
    def laid_out_bytes(self) -> int:
        """Of the copies of weights that the first call makes."""
        products = [self._head, *(product for layer in self._layers for product in layer.products)]
        return sum(product.laid_out_bytes for product in products)


class _Seen:
    """What all layers share: the turn of the new tokens' positions [B, 1, width], and which keys are seen."""

    def __init__(self, cosine: Tensor, turned: Tensor, mask: Tensor | None, prompts: PromptKeys | None) -> None:
        self.cosine, self.turned, self.prompts, self._mask = cosine, turned, prompts, mask
        self._bias: Tensor | None = None

    def bias(self, keys: Tensor, length: int) -> Tensor | None:
        """Added to scores of ``keys`` [B, heads, room, width], ``length`` of them written; [B or 1, 1, 1, room]."""
        room = keys.shape[-2]
        if self._mask is None and room == length:
            return None
        if self._bias is None:
            seen = keys.new_ones(1, length, dtype=torch.bool) if self._mask is None else self._mask
            bias = torch.full((len(seen), room), float("-inf"), dtype=keys.dtype, device=keys.device)
            bias[:, :length].masked_fill_(seen, 0.0)
            self._bias = bias[:, None, None]
        return self._bias


class _Layer:
    """A layer of a known decoder, for one more token a row."""

    def __init__(self, place: int, layer: Any) -> None:
        attention, unit = layer.self_attn, layer.mlp
        self._place = place
        self._before, self._between = layer.input_layernorm, layer.post_attention_layernorm
        self._attention, self._act = attention, unit.act_fn
        # Next to each other, so that queries and keys are turned at once.
        self._asked = Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self._given = Product(attention.o_proj)
        self._gate, self._up, self._down = (Product(part) for part in (unit.gate_proj, unit.up_proj, unit.down_proj))
        self.products = (self._asked, self._given, self._gate, self._up, self._down)

    def __call__(self, hidden: Tensor, seen: _Seen, held: RoomyLayer) -> Tensor:
        hidden = self._given.plus(self._attend(_norm(self._before, hidden), seen, held), hidden)
        inner = _norm(self._between, hidden)
        active = self._gate.silu(inner) if is_silu(self._act) else self._act(self._gate(inner))
        return self._down.plus(self._up.times(inner, active), hidden)

    def _attend(self, hidden: Tensor, seen: _Seen, held: RoomyLayer) -> Tensor:
        """What the heads of each row have mixed, [B, H·width]."""
        attention = self._attention
        rows, width, scale = len(hidden), attention.head_dim, attention.scaling
        heads = self._asked(hidden).view(rows, -1, width)
        keys = heads.shape[1] // (attention.num_key_value_groups + 2)
        queries = heads.shape[1] - 2 * keys
        placed, value = heads[:, : queries + keys], heads[:, queries + keys :]
        if hasattr(attention, "q_norm"):
            normed = _norm(attention.q_norm, placed[:, :queries]), _norm(attention.k_norm, placed[:, queries:])
            placed = torch.cat(normed, 1)
        placed = rotate(placed.unsqueeze(1), seen.cosine, seen.turned).squeeze(1)
        query, key = placed[:, :queries], placed[:, queries:]
        written = held.update(key.unsqueeze(2), value.unsqueeze(2))
        length = written[0].shape[-2]
        if seen.prompts is not None or _multiplies_fast(hidden):
            held_keys, held_values = held.room(rows)
            grouped = (query * scale).reshape(rows, keys, -1, width)
            score = torch.bmm(grouped.flatten(0, 1), held_keys.flatten(0, 1).transpose(1, 2))
            score = score.view(*grouped.shape[:-1], -1)
            bias = seen.bias(held_keys, length)
            if bias is not None:
                score.add_(bias)
            mixed = self._mix(grouped, score, held_values, seen.prompts)
        else:
            grouped = query.reshape(rows, keys, -1, width)
            bias = seen.bias(written[0], length)
            mixed = scaled_dot_product_attention(grouped, *written, attn_mask=bias, scale=scale)
        return mixed.reshape(rows, -1)

    def _mix(self, query: Tensor, score: Tensor, values: Tensor, prompts: PromptKeys | None) -> Tensor:
        """Values mixed by the weights that scores [B, heads, n, T] give, those of prompts before them."""
        if prompts is None:
            return torch.bmm(score.softmax(-1).flatten(0, 1), values.flatten(0, 1))
        of_prompts = prompts.scores(self._place, query)
        weight = torch.cat([of_prompts, score], -1).softmax(-1)
        before = of_prompts.shape[-1]
        own = torch.bmm(weight[..., before:].flatten(0, 1), values.flatten(0, 1))
        return prompts.mixed(self._place, weight[..., :before]) + own.view(query.shape)


def _multiplies_fast(hidden: Tensor) -> bool:
    """Whether products of whole tensors are faster than PyTorch's attention, which would copy parts of them."""
    return hidden.is_cpu and hidden.dtype == torch.bfloat16 and multiplies_bfloat16()


def _norm(layer: Any, hidden: Tensor) -> Tensor:
    """``layer(hidden)`` in fewer operations."""
    weight, epsilon = layer.weight, layer.variance_epsilon
    if not hidden.is_cpu:
        return rms_norm(hidden, weight.shape, weight, epsilon)
    # A CPU takes `rms_norm` apart: 52 µs for 16 rows of 128 in float32, and 22 so (one thread).
    wide = hidden.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    squares = torch.addcmul(wide.new_full((), epsilon), length, length, value=1 / hidden.shape[-1])
    return (wide * squares.rsqrt_()).mul_(weight).to(hidden.dtype)


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


def laid_out_bytes(model: nn.Module) -> int:
    """Bytes of the copies that sampling from ``model`` on a CPU makes of its weights."""
    return OneTokenPass(model).laid_out_bytes if is_known_decoder(model) else 0


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


@torch.no_grad()
def _gives_the_same(model: nn.Module) -> bool:
    """Compare both ways on a few tokens."""
    model_: Any = model
    tokens = torch.arange(1, 5, device=model_.device).view(2, 2) % model_.config.vocab_size
    cache = growing_cache(model, 3)
    last_logits(model, input_ids=tokens, past_key_values=cache, use_cache=True)
    asked = torch.cat([tokens, tokens[:, :1]], 1)
    expected = last_logits(model, input_ids=asked, use_cache=False).float()
    found = OneTokenPass(model)(tokens[:, 0], tokens.new_full((2,), 2), None, cache.layers).float()
    allowed = 1e-3 if torch.finfo(model_.dtype).bits >= 32 else 5e-2
    spread = (expected - expected.mean(-1, keepdim=True)).abs().amax()
    return bool((found - expected).abs().amax() <= allowed * spread + 1e-6)
