"""Which rows share a forward pass: those of similar length, or those that answer one prompt.

Scoring rows of 40 to 256 tokens takes 0.71 of the time that it takes in their original order (`python -m
benchmarks.ablation`).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dpr_lightning.engine.shared_prompts import Prompts

Cut = Callable[[Sequence[int]], list[int]]
"""From the lengths of rows, in the order of their passes, to the number of rows of each part."""


def parts_by_length(
    tokens: Tensor, mask: Tensor, token_budget: int, *, shared: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Split rows into forward passes of at most ``token_budget`` tokens, each cut to its longest row.

    Args:
        tokens: [B, L] right-padded.
        mask: [B, L] True where the policy acted.
        token_budget: tokens of a part, with padding, and with the prompt of each row counted separately.
        shared: whether a prompt that several rows of a part answer is read once.

    Yields row indices (on the CPU), and ``tokens`` and ``mask`` of these rows.
    """

    def cut(length: Sequence[int]) -> list[int]:
        sizes, longest = [0], 0
        for each in length:
            longest = max(longest, each)
            if sizes[-1] and longest * (sizes[-1] + 1) > token_budget:
                sizes.append(0)
                longest = each
            sizes[-1] += 1
        return sizes

    length = _lengths(mask)
    for rows in _parts(tokens, mask, length, cut, shared):
        longest = int(length[rows].max())
        yield rows, tokens[rows.to(tokens.device), :longest], mask[rows.to(mask.device), :longest]


def micro_batches(tokens: Tensor, mask: Tensor, number: int, *, shared: bool = False, groups: int = 1) -> list[Tensor]:
    """Split row indices into exactly ``number`` parts; sums over all parts do not depend on the split.

    Args:
        tokens: as for :func:`parts_by_length`; so are ``mask`` and ``shared``.
        mask: [B, L].
        number: parts.
        shared: whether rows of a part that respond to one prompt share its prefill.
        groups: number of adjacent rows of a group, which stays whole and in order, for losses that compare its rows; B
            is a multiple of it.
    """
    if groups > 1:
        longest = _lengths(mask).view(-1, groups).amax(1)
        members = torch.arange(groups)
        parts = longest.argsort(stable=True).tensor_split(number)
        return [(part.unsqueeze(1) * groups + members).flatten().to(mask.device) for part in parts]

    def cut(length: Sequence[int]) -> list[int]:
        return [len(part) for part in torch.arange(len(length)).tensor_split(number)]

    return [rows.to(mask.device) for rows in _parts(tokens, mask, _lengths(mask), cut, shared)]


def _parts(tokens: Tensor, mask: Tensor, length: Tensor, cut: Cut, shared: bool) -> list[Tensor]:
    """Rows sorted by length, or grouped by prompt where that takes fewer tokens."""

    def split(order: Tensor) -> list[Tensor]:
        return list(torch.split(order, cut(length[order].tolist())))

    plain = split(length.argsort(stable=True))
    if not shared or len(plain) == 1:
        return plain
    prompts = Prompts.of(tokens.cpu(), mask.cpu())
    longest = torch.zeros_like(length).scatter_reduce_(0, prompts.prompt, length, "amax")[prompts.prompt]
    order = length.argsort(stable=True)
    for key in (prompts.prompt, longest):
        order = order[key[order].argsort(stable=True)]

    def to_read(parts: Sequence[Tensor]) -> int:
        return sum(prompts.take(rows).to_read() for rows in parts if len(rows))

    return min(plain, split(order), key=to_read)


def _lengths(mask: Tensor) -> Tensor:
    """Tokens of each row up to its last action, [B] on the CPU."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * columns).amax(1).clamp_min(2).cpu()
