"""Attention of one new token a row to the cached keys and values of earlier ones."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dpr_lightning.engine import kernels
from dpr_lightning.engine.attention_blocks import rotate, signed_sine
from dpr_lightning.engine.decoding.kv_cache import PreallocatedKVLayer
from dpr_lightning.engine.decoding.rms_norm import Norm
from dpr_lightning.engine.decoding.shared_prompt_cache import SharedPromptCache
from dpr_lightning.engine.half_precision import autocasts, multiplies_bfloat16


class AttentionContext:
    """What all layers share in one step: rotary tables of the new tokens' positions, and which keys are visible.

    Args:
        cosine: [B, 1, width], of the rows' positions.
        sine: [B, 1, width], of the rows' positions.
        mask: [B, T+1], False where a row has no token; None: nowhere.
        prompts: keys and values of the prompts, where the rows' cache does not have them.
    """

    def __init__(self, cosine: Tensor, sine: Tensor, mask: Tensor | None, prompts: SharedPromptCache | None) -> None:
        self.cosine, self.signed_sine, self.prompts, self._mask = cosine, signed_sine(sine).contiguous(), prompts, mask
        self.compiled = kernels.serves(cosine) and not autocasts()
        self._bias: Tensor | None = None

    def bias(self, length: int, capacity: int, dtype: torch.dtype) -> Tensor | None:
        """Bias [B or 1, capacity] to add to scores of ``capacity`` preallocated keys, ``length`` of them written."""
        if self._mask is None and capacity == length:
            return None
        if self._bias is None:
            seen = self.cosine.new_ones(1, length, dtype=torch.bool) if self._mask is None else self._mask
            self._bias = torch.full((len(seen), capacity), float("-inf"), dtype=dtype, device=seen.device)
            self._bias[:, :length].masked_fill_(seen, 0.0)
        return self._bias


class Attention:
    """An attention layer of a known decoder, between its projections.

    Args:
        index: of the layer.
        layer: attention module of transformers.
    """

    def __init__(self, index: int, layer: Any) -> None:
        self._layer_index, self._group = index, layer.num_key_value_groups
        self._width, self._scale = layer.head_dim, layer.scaling
        self._norms = (Norm(layer.q_norm), Norm(layer.k_norm)) if "q_norm" in layer._modules else None

    def __call__(self, projected: Tensor, seen: AttentionContext, cache: PreallocatedKVLayer) -> Tensor:
        """Output of all heads, [B, H·width].

        Args:
            projected: queries, keys and values of each row, [B, (H + 2·key heads)·width].
            seen: shared by all layers.
            cache: keys and values so far; those of the new token are appended.
        """
        heads = projected.view(len(projected), -1, self._width)
        keys = heads.shape[1] // (self._group + 2)
        queries = heads.shape[1] - 2 * keys
        if self._norms is not None:
            normed = self._norms[0](heads[:, :queries]), self._norms[1](heads[:, queries : queries + keys])
            heads = torch.cat([*normed, heads[:, queries + keys :]], 1)
        if seen.compiled and self._width % kernels.lanes() == 0:
            return self._by_kernel(heads, keys, seen, cache)
        rotated = rotate(heads[:, : queries + keys].unsqueeze(1), seen.cosine, seen.signed_sine).squeeze(1)
        query = rotated[:, :queries].reshape(len(projected), keys, -1, self._width)
        key, value = rotated[:, queries:].unsqueeze(2), heads[:, queries + keys :].unsqueeze(2)
        # In bfloat16, products of whole tensors are faster than PyTorch's attention, which would copy slices of them.
        fast = projected.is_cpu and projected.dtype == torch.bfloat16 and multiplies_bfloat16()
        by_products = seen.prompts is not None or fast
        states = cache.update(key, value)
        length = states[0].shape[-2]
        if by_products:
            states = cache.preallocated(len(projected))
        bias = seen.bias(length, states[0].shape[-2], states[0].dtype)
        if by_products:
            mixed = self._by_products(query, states, bias, seen.prompts)
        else:
            mask = None if bias is None else bias[:, None, None]
            mixed = scaled_dot_product_attention(query, *states, attn_mask=mask, scale=self._scale)
        return mixed.reshape(len(projected), -1)

    def _by_kernel(self, heads: Tensor, keys: int, seen: AttentionContext, cache: PreallocatedKVLayer) -> Tensor:
        rows = len(heads)
        if not cache.is_initialized:
            none = heads.new_empty(rows, keys, 0, self._width)
            cache.update(none, none)
        states = cache.lengthen(rows, 1)
        prompts = None if seen.prompts is None else seen.prompts.of_layer(self._layer_index)
        bias, length = seen.bias(cache.length, cache.length, torch.float32), cache.length
        tables = seen.cosine, seen.signed_sine
        return kernels.attend(heads.view(rows, -1), *tables, states, length, self._scale, bias, prompts)

    def _by_products(
        self, query: Tensor, states: tuple[Tensor, Tensor], bias: Tensor | None, prompts: SharedPromptCache | None
    ) -> Tensor:
        """Attention as products of whole preallocated tensors, with columns not written yet masked out."""
        keys, values = states
        query = query * self._scale
        score = torch.bmm(query.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)).view(*query.shape[:-1], -1)
        if bias is not None:
            score.add_(bias[:, None, None])
        if prompts is None:
            return torch.bmm(score.softmax(-1).flatten(0, 1), values.flatten(0, 1))
        of_prompts = prompts.scores(self._layer_index, query)
        weight = torch.cat([of_prompts, score], -1).softmax(-1)
        before = of_prompts.shape[-1]
        of_answers = torch.bmm(weight[..., before:].flatten(0, 1), values.flatten(0, 1))
        return prompts.mixed(self._layer_index, weight[..., :before]) + of_answers.view(query.shape)
