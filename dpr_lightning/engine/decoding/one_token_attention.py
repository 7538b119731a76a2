"""Attention of one more token a row to what is kept of those before it."""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class CacheColumn:
    """Where the keys of new tokens go, as tensors alone, so that a recorded step finds the next place by itself.

    ``place`` [1]: among keys with all their room; ``bias`` [B or 1, room]: added to scores, −∞ where nothing is seen.
    """

    place: Tensor
    bias: Tensor


class AttentionContext:
    """What all layers share: the turn of the new tokens' positions, and which keys are seen.

    Args:
        cosine: [B, 1, width], of the rows' positions.
        sine: the same.
        mask: [B, T+1], False where a row has no token; None: nowhere.
        prompts: what stands before the rows' own tokens, where it is not among them.
        column: instead of ``mask``, where steps are recorded.
    """

    def __init__(
        self,
        cosine: Tensor,
        sine: Tensor,
        mask: Tensor | None,
        prompts: SharedPromptCache | None,
        column: CacheColumn | None = None,
    ) -> None:
        self.cosine, self.turned, self.prompts, self._mask = cosine, signed_sine(sine).contiguous(), prompts, mask
        self.column = column
        self.compiled = column is None and kernels.serves(cosine) and not autocasts()
        self._bias: Tensor | None = None

    def bias(self, length: int, room: int, dtype: torch.dtype) -> Tensor | None:
        """Added to the scores of keys for which there is ``room``, ``length`` of them written; [B or 1, room]."""
        if self._mask is None and room == length:
            return None
        if self._bias is None:
            seen = self.cosine.new_ones(1, length, dtype=torch.bool) if self._mask is None else self._mask
            self._bias = torch.full((len(seen), room), float("-inf"), dtype=dtype, device=seen.device)
            self._bias[:, :length].masked_fill_(seen, 0.0)
        return self._bias


class Attention:
    """An attention layer of a known decoder, between its projections.

    Args:
        place: of the layer among others.
        layer: transformers' own.
    """

    def __init__(self, place: int, layer: Any) -> None:
        self._place, self._group = place, layer.num_key_value_groups
        self._width, self._scale = layer.head_dim, layer.scaling
        self._norms = (Norm(layer.q_norm), Norm(layer.k_norm)) if hasattr(layer, "q_norm") else None

    def __call__(self, asked: Tensor, seen: AttentionContext, held: PreallocatedKVLayer) -> Tensor:
        """What the heads of each row have mixed, [B, H·width].

        Args:
            asked: queries, keys and values of each row, [B, (H + 2·key heads)·width].
            seen: shared by all layers.
            held: keys and values so far; those of the new token are written behind them.
        """
        heads = asked.view(len(asked), -1, self._width)
        keys = heads.shape[1] // (self._group + 2)
        queries = heads.shape[1] - 2 * keys
        if self._norms is not None:
            normed = self._norms[0](heads[:, :queries]), self._norms[1](heads[:, queries : queries + keys])
            heads = torch.cat([*normed, heads[:, queries + keys :]], 1)
        if seen.compiled and self._width % kernels.lanes() == 0:
            return self._by_kernel(heads, keys, seen, held)
        placed = rotate(heads[:, : queries + keys].unsqueeze(1), seen.cosine, seen.turned).squeeze(1)
        query = placed[:, :queries].reshape(len(asked), keys, -1, self._width)
        key, value = placed[:, queries:].unsqueeze(2), heads[:, queries + keys :].unsqueeze(2)
        by_products = seen.prompts is not None or _multiplies_fast(asked)
        if seen.column is not None:
            kept = held.write(key, value, seen.column.place)
            bias: Tensor | None = seen.column.bias
        else:
            kept = held.update(key, value)
            length = kept[0].shape[-2]
            if by_products:  # parts of a tensor would be copied
                kept = held.room(len(asked))
            bias = seen.bias(length, kept[0].shape[-2], kept[0].dtype)
        if by_products:
            mixed = self._by_products(query, kept, bias, seen.prompts)
        else:
            shown = None if bias is None else bias[:, None, None]
            mixed = scaled_dot_product_attention(query, *kept, attn_mask=shown, scale=self._scale)
        return mixed.reshape(len(asked), -1)

    def _by_kernel(self, heads: Tensor, keys: int, seen: AttentionContext, held: PreallocatedKVLayer) -> Tensor:
        rows = len(heads)
        if not held.is_initialized:
            none = heads.new_empty(rows, keys, 0, self._width)
            held.update(none, none)
        kept = held.lengthen(rows, 1)
        length = held.keys.shape[-2]  # type: ignore[union-attr]
        prompts = None if seen.prompts is None else seen.prompts.of_layer(self._place)
        bias = seen.bias(length, length, torch.float32)
        return kernels.attend(heads.view(rows, -1), seen.cosine, seen.turned, kept, length, self._scale, bias, prompts)

    def _by_products(
        self, query: Tensor, kept: tuple[Tensor, Tensor], bias: Tensor | None, prompts: SharedPromptCache | None
    ) -> Tensor:
        """As products of whole tensors, what is not written yet masked out."""
        keys, values = kept
        query = query * self._scale
        score = torch.bmm(query.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)).view(*query.shape[:-1], -1)
        if bias is not None:
            score.add_(bias[:, None, None])
        if prompts is None:
            return torch.bmm(score.softmax(-1).flatten(0, 1), values.flatten(0, 1))
        of_prompts = prompts.scores(self._place, query)
        weight = torch.cat([of_prompts, score], -1).softmax(-1)
        before = of_prompts.shape[-1]
        own = torch.bmm(weight[..., before:].flatten(0, 1), values.flatten(0, 1))
        return prompts.mixed(self._place, weight[..., :before]) + own.view(query.shape)


def _multiplies_fast(asked: Tensor) -> bool:
    """Whether products of whole tensors are faster than PyTorch's attention, which would copy parts of them."""
    return asked.is_cpu and asked.dtype == torch.bfloat16 and multiplies_bfloat16()
