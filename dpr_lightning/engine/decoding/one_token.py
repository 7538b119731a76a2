"""The forward pass of one token a row through a known decoder, with fewer operations than transformers' own.

0.45 (toy, 16 rows) to 0.84 (toy, 512 rows) of the time of the model's own forward pass, with kernels, and 0.76 (toy, 16
rows) without (`python -m benchmarks.ablation`).
"""

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpr_lightning.engine.cache_argument import cache_argument
from dpr_lightning.engine.decoding.kv_cache import PreallocatedKVLayer, preallocated_cache
from dpr_lightning.engine.decoding.one_token_attention import Attention, AttentionContext
from dpr_lightning.engine.decoding.packed_linear import PackedLinear
from dpr_lightning.engine.decoding.rms_norm import Norm
from dpr_lightning.engine.decoding.shared_prompt_cache import SharedPromptCache
from dpr_lightning.engine.forward import last_logits
from dpr_lightning.engine.half_precision import autocasts
from dpr_lightning.engine.known_decoders import inside_of_adapters, is_known_decoder, is_silu
from dpr_lightning.engine.model_mode import has_content
from dpr_lightning.engine.weight_shards import fetches_weights

log = logging.getLogger(__name__)
_equal: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether :class:`OneTokenPass` gave the logits of a model's own forward pass."""


class OneTokenPass:
    """Logits of the next token, for rows whose keys and values are in :class:`PreallocatedKVLayer` layers.

    It calls the model's modules, so that adapters act, and differs from the model's forward pass in between: queries
    that share a key head are attended to as positions of one head, so that keys are read once and never copied; masks
    and positions are computed once a step; weights on a CPU are packed once for many steps (:class:`PackedLinear`).

    Args:
        model: for which :func:`has_one_token_pass` is true; its weights must not change while this is in use.
    """

    def __init__(self, model: nn.Module) -> None:
        library_model = inside_of_adapters(model)
        self._decoder, self._embedding = library_model.model, library_model.get_input_embeddings()
        self._head = PackedLinear(library_model.get_output_embeddings())
        self._norm = Norm(self._decoder.norm)
        self._layers = [_Layer(index, layer) for index, layer in enumerate(self._decoder.layers)]

    def __call__(
        self,
        tokens: Tensor,
        position: Tensor,
        mask: Tensor | None,
        layers: Sequence[Any],
        prompts: SharedPromptCache | None = None,
    ) -> Tensor:
        """Logits [B, V] after one more token a row.

        Args:
            tokens: [B].
            position: [B], of these tokens in their rows.
            mask: [B, T+1], False where a row has no token; None: nowhere.
            layers: keys and values of T tokens a row; those of the new tokens are appended.
            prompts: keys and values of the prompts, where ``layers`` does not have them.
        """
        hidden = self._embedding(tokens)
        cosine, sine = self._decoder.rotary_emb(hidden.unsqueeze(1), position.unsqueeze(1))
        seen = AttentionContext(cosine, sine, mask, prompts)
        for layer, cache in zip(self._layers, layers, strict=True):
            hidden = layer(hidden, seen, cache)
        return self._head(self._norm(hidden))

    @property
    def packed_bytes(self) -> int:
        """Bytes of the weight copies that the first call makes."""
        products = [self._head, *(product for layer in self._layers for product in layer.products)]
        return sum(product.packed_bytes for product in products)


class _Layer:
    """A layer of a known decoder, for one more token a row."""

    def __init__(self, index: int, layer: Any) -> None:
        attention, unit = layer.self_attn, layer.mlp
        self._before, self._between = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self._attend, self._act = Attention(index, attention), unit.act_fn
        # In one product, so that queries and keys are rotated in one operation.
        self._qkv_projection = PackedLinear(attention.q_proj, attention.k_proj, attention.v_proj)
        self._output_projection = PackedLinear(attention.o_proj)
        self._gate, self._up, self._down = (
            PackedLinear(part) for part in (unit.gate_proj, unit.up_proj, unit.down_proj)
        )
        self.products = (self._qkv_projection, self._output_projection, self._gate, self._up, self._down)

    def __call__(self, hidden: Tensor, seen: AttentionContext, cache: PreallocatedKVLayer) -> Tensor:
        mixed = self._attend(self._qkv_projection(self._before(hidden)), seen, cache)
        hidden = self._output_projection(mixed, hidden, "plus")
        inner = self._between(hidden)
        active = self._gate(inner, then="silu") if is_silu(self._act) else self._act(self._gate(inner))
        return self._down(self._up(inner, active, "times"), hidden, "plus")


def has_one_token_pass(model: nn.Module) -> bool:
    """Whether :class:`OneTokenPass` gives the logits of ``model``: a known decoder, not sharded, and tried once."""
    library_model = inside_of_adapters(model)
    if not is_known_decoder(model) or fetches_weights(model):
        return False
    embedding = library_model.get_input_embeddings()
    modules = (module for module in model.modules() if module is not embedding)
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return False
    if model not in _equal:
        _equal[model] = not has_content(model) or _gives_the_same(model)
        if not _equal[model]:
            log.warning(
                "This %s does not compute what others of its kind do; its own forward pass decodes its answers.",
                library_model.config.model_type,
            )
    return _equal[model]


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the copies that sampling from ``model`` on a CPU makes of its weights."""
    return OneTokenPass(model).packed_bytes if is_known_decoder(model) else 0


@torch.no_grad()
def _gives_the_same(model: nn.Module) -> bool:
    """Compare with the model's forward pass on a few tokens."""
    model_: Any = model
    tokens = torch.arange(1, 5, device=model_.device).view(2, 2) % model_.config.vocab_size
    cache = preallocated_cache(model, 3)
    last_logits(model, input_ids=tokens, **{cache_argument(model): cache}, use_cache=True)
    rows = torch.cat([tokens, tokens[:, :1]], 1)
    expected = last_logits(model, input_ids=rows, use_cache=False).float()
    result = OneTokenPass(model)(tokens[:, 0], tokens.new_full((2,), 2), None, cache.layers).float()
    exact = torch.finfo(model_.dtype).bits >= 32 and not autocasts()
    allowed = 1e-3 if exact else 5e-2
    spread = (expected - expected.mean(-1, keepdim=True)).abs().amax()
    return bool((result - expected).abs().amax() <= allowed * spread + 1e-6)
