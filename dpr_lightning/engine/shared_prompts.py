"""Prompts that several rows answer, read once; their keys and values are prepended to each answer's.

A DPR step with 4 answers to a prompt takes 0.66 of the time that it takes without this (`python -m
benchmarks.ablation`).
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from dpr_lightning.engine.cache_argument import cache_argument
from dpr_lightning.engine.known_decoders import attention_of, inside_of_adapters, is_known_decoder
from dpr_lightning.engine.weight_shards import fetches_weights

WORTH = 0.85
"""Share of the tokens above which sharing does not pay: masks and concatenated keys have a cost too."""


@dataclass(frozen=True)
class Prompts:
    """The distinct prompts of some rows.

    ``prompt`` [B]: index of the prompt that each row answers; ``before`` [B]: length of that prompt without its last
    token, which is read with the answer because its logits sample the first action; ``width`` [B]: tokens from there
    to the last of the row.
    """

    tokens: Tensor
    prompt: Tensor
    before: Tensor
    width: Tensor

    @classmethod
    def of(cls, tokens: Tensor, mask: Tensor) -> "Prompts":
        """The prompts of rows [B, L], compared by their tokens; ``mask`` [B, L] is True where the policy acted."""
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        last = torch.where(mask, columns, 0).amax(1)
        first = torch.where(mask, columns, tokens.shape[1]).amin(1)
        before = torch.where(mask.any(1), first - 1, 0).clamp_min(0)
        longest = max(1, int(before.max()))
        read = torch.where(columns[:longest] < before.unsqueeze(1), tokens[:, :longest], -1)
        distinct, prompt = torch.unique(read, dim=0, return_inverse=True)
        return cls(distinct, prompt, before, last - before + 1)

    def take(self, rows: Tensor) -> "Prompts":
        """The prompts of the rows with these indices."""
        return Prompts(self.tokens, self.prompt[rows], self.before[rows], self.width[rows])

    def pays(self) -> bool:
        """Whether reading each prompt once saves enough against reading rows whole."""
        return self._once() <= WORTH * self._alone()

    def to_read(self) -> int:
        """Tokens of a forward pass, padding included."""
        return self._once() if self.pays() else self._alone()

    def _once(self) -> int:
        prompts = int(self.before.max()) * len(set(self.prompt.tolist()))
        return prompts + len(self.width) * int(self.width.max())

    def _alone(self) -> int:
        return len(self.width) * int((self.before + self.width).max())


class PromptLayer(DynamicLayer):
    """Keys and values of prompts in one layer, prepended to those of the rows that answer them.

    Args:
        keys: [G, heads, P, width] of the prompts.
        values: the same.
        prompt: [B], index of the prompt that each row answers.
    """

    def __init__(self, keys: Tensor, values: Tensor, prompt: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._read, self._prompt = (keys, values), prompt

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of prompts and rows [B, heads, W, width]; gradients flow through those of prompts too."""
        keys, values = (states.index_select(0, self._prompt) for states in self._read)
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)


def with_shared_prompts(model: nn.Module, tokens: Tensor, mask: Tensor) -> tuple[dict[str, Any], Tensor] | None:
    """Read every distinct prompt once, and prepare the inputs for the rest of the rows; None: it does not pay.

    The prompts have been read when this returns, so the pass that follows must be of the same model in the same state.

    Args:
        model: whose forward pass follows.
        tokens: [B, L] right-padded.
        mask: [B, L] True where the policy acted; a prompt is what comes before.

    Returns:
        inputs of the forward pass, and where each row would start in its output if it had its prompt, [B], counted
        through all rows.
    """
    if len(tokens) < 2 or not shares_prompts(model):
        return None
    prompts = Prompts.of(tokens, mask)
    if not prompts.pays():
        return None
    before, read, width = prompts.before, prompts.tokens, int(prompts.width.max())
    cache = DynamicCache(config=cast(Any, model.config))
    cached = {cache_argument(model): cache, "use_cache": True}
    inside_of_adapters(model).model(input_ids=read.clamp_min(0), **cached)
    cache.layers = [PromptLayer(layer.keys, layer.values, prompts.prompt) for layer in cast(Any, cache.layers)]
    offset = torch.arange(width, device=tokens.device)
    position = before.unsqueeze(1) + offset
    rest = tokens.gather(1, position.clamp_max(tokens.shape[1] - 1))
    of_prompt = torch.arange(read.shape[1], device=tokens.device) < before.unsqueeze(1)
    of_rest = (offset <= offset.unsqueeze(1)).expand(len(tokens), width, width)
    seen = torch.cat([of_prompt.unsqueeze(1).expand(-1, width, -1), of_rest], -1).unsqueeze(1)
    if attention_of(model) == "eager":  # which adds its mask to the scores
        dtype = cast(Any, model).dtype
        added = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        seen = added.masked_fill_(~seen, torch.finfo(dtype).min)
    inputs = {
        "input_ids": rest,
        "position_ids": position,
        "attention_mask": seen,
        **cached,
    }
    return inputs, torch.arange(len(tokens), device=tokens.device) * width - before


def shares_prompts(model: nn.Module) -> bool:
    """Whether ``model`` can read a prompt once for several rows of a forward pass.

    Its layers must accept prepended keys and values, and a mask over them.
    """
    if not is_known_decoder(model) or fetches_weights(model):
        return False
    recomputes = model.training and any(
        isinstance(part, GradientCheckpointingLayer) and part.gradient_checkpointing for part in model.modules()
    )
    return attention_of(model) in ("sdpa", "eager") and not recomputes
