"""Attention of one more token a row to what is kept of those before it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dpr_lightning import kernels
from dpr_lightning.functional import rotate, turned_sine
from dpr_lightning.policies import autocasts, multiplies_bfloat16
from dpr_lightning.rollouts.cache import RoomyLayer
from dpr_lightning.rollouts.norm import Norm
from dpr_lightning.rollouts.prompt_keys import PromptKeys


class Seen:
    """What all layers share: the turn of the new tokens' positions, and which keys are seen.

    Args:
        cosine: [B, 1, width], of the rows' positions.
        sine: the same.
        mask: [B, T+1], False where a row has no token; None: nowhere.
        prompts: what stands before the rows' own tokens, where it is not among them.
    """

    def __init__(self, cosine: Tensor, sine: Tensor, mask: Tensor | None, prompts: PromptKeys | None) -> None:
        self.cosine, self.turned, self.prompts, self._mask = cosine, turned_sine(sine).contiguous(), prompts, mask
        self.compiled = kernels.serves(cosine) and not autocasts()
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

    def __call__(self, asked: Tensor, seen: Seen, held: RoomyLayer) -> Tensor:
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
        query, key, value = placed[:, :queries], placed[:, queries:], heads[:, queries + keys :]
        written = held.update(key.unsqueeze(2), value.unsqueeze(2))
        length = written[0].shape[-2]
        query = query.reshape(len(asked), keys, -1, self._width)
        if seen.prompts is not None or _multiplies_fast(asked):
            mixed = self._by_products(query, held.room(len(asked)), length, seen)
        else:
            bias = seen.bias(length, length, query.dtype)
            bias = bias if bias is None else bias[:, None, None]
            mixed = scaled_dot_product_attention(query, *written, attn_mask=bias, scale=self._scale)
        return mixed.reshape(len(asked), -1)

    def _by_kernel(self, heads: Tensor, keys: int, seen: Seen, held: RoomyLayer) -> Tensor:
        rows = len(heads)
        if not held.is_initialized:
            none = heads.new_empty(rows, keys, 0, self._width)
            held.update(none, none)
        kept = held.lengthen(rows, 1)
        length = held.keys.shape[-2]  # type: ignore[union-attr]
        prompts = None if seen.prompts is None else seen.prompts.of_layer(self._place)
        bias = seen.bias(length, length, torch.float32)
        return kernels.attend(heads.view(rows, -1), seen.cosine, seen.turned, kept, length, self._scale, bias, prompts)

    def _by_products(self, query: Tensor, kept: tuple[Tensor, Tensor], length: int, seen: Seen) -> Tensor:
        """As products of whole tensors, what is not written yet masked out."""
        keys, values = kept
        query = query * self._scale
        score = torch.bmm(query.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)).view(*query.shape[:-1], -1)
        bias = seen.bias(length, keys.shape[-2], keys.dtype)
        if bias is not None:
            score.add_(bias[:, None, None])
        if seen.prompts is None:
            return torch.bmm(score.softmax(-1).flatten(0, 1), values.flatten(0, 1))
        of_prompts = seen.prompts.scores(self._place, query)
        weight = torch.cat([of_prompts, score], -1).softmax(-1)
        before = of_prompts.shape[-1]
        own = torch.bmm(weight[..., before:].flatten(0, 1), values.flatten(0, 1))
        return seen.prompts.mixed(self._place, weight[..., :before]) + own.view(query.shape)


def _multiplies_fast(asked: Tensor) -> bool:
    """Whether products of whole tensors are faster than PyTorch's attention, which would copy parts of them."""
    return asked.is_cpu and asked.dtype == torch.bfloat16 and multiplies_bfloat16()
