"""Sampling of one token a row from logits."""

import torch
from torch import Tensor

_BLOCK = 256
"""Tokens of the vocabulary whose probabilities are summed first, before the search within one block."""


def sample_tokens(
    logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sample one token a row by inverting the cumulative distribution.

    Args:
        logits: [B, V].
        uniform: [B] in [0, 1), float64.
        temperature: divides the logits; 0 takes the most probable token.
        top_p: sample from the smallest set of tokens with this probability.

    Returns:
        tokens [B] and their log-probabilities [B] under the sampling distribution (0 when greedy).
    """
    if temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, torch.zeros_like(tokens, dtype=torch.float32)
    scaled = logits.float()
    if temperature != 1:
        scaled = scaled / temperature
    if top_p < 1:
        scaled = _nucleus(scaled.log_softmax(-1), top_p)
    highest = scaled.amax(-1, keepdim=True)
    weight = scaled.new_zeros(len(scaled), -(-scaled.shape[-1] // _BLOCK) * _BLOCK)
    torch.sub(scaled, highest, out=weight[:, : scaled.shape[-1]]).exp_()
    # First the block, then the token in it: the vocabulary is summed once, and not once for every token.
    blocks = weight.view(len(scaled), -1, _BLOCK)
    until = blocks.sum(-1).double().cumsum(-1)
    total = until[:, -1:]
    target = uniform.unsqueeze(1) * total
    block = _first_above(until, target)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, 1, _BLOCK)).squeeze(1).double().cumsum(-1)
    before = torch.where(block > 0, until.gather(1, (block - 1).clamp_min(0)), 0.0)
    tokens = block * _BLOCK + _first_above(inside, target - before)
    tokens = tokens.clamp_max(scaled.shape[-1] - 1)  # where logits are no numbers
    logprob = scaled.gather(1, tokens) - highest - total.log().float()
    return tokens.squeeze(1), logprob.squeeze(1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """Index [B, 1] of the first sum above the target, never that of a term that adds nothing, however it rounds."""
    largest = torch.nextafter(cumulative[:, -1:], cumulative.new_zeros(()))
    index = torch.searchsorted(cumulative, torch.minimum(target, largest), right=True)
    return index.clamp_max(cumulative.shape[-1] - 1)


def _nucleus(logprobs: Tensor, top_p: float) -> Tensor:
    """The smallest set of tokens whose probability reaches ``top_p``, renormalised (Holtzman et al. 2020)."""
    ordered, index = logprobs.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    in_nucleus = torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, index, before < top_p)
    return logprobs.masked_fill(~in_nucleus, float("-inf")).log_softmax(-1)
