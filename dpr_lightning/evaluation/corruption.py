"""Demonstrations with one wrong token: what a reward that knows right from wrong must notice."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpr_lightning.errors import InputError


class Corrupted(NamedTuple):
    """``tokens`` [B, L] with one acted token changed in each row; ``place`` [B]: which action of the row it is."""

    tokens: Tensor
    place: Tensor


def corrupt_one_token(tokens: Tensor, mask: Tensor, *, stops: Collection[int], seed: int) -> Corrupted:
    """Replace one acted token of each row by another that the demonstrations use.

    The place is drawn evenly from the row's actions, the token evenly from all others that occur as actions; tokens
    that end an answer are neither replaced nor put in. What follows stays as it was.

    Args:
        tokens: [B, L] right-padded token ids.
        mask: [B, L] True where the demonstration acts.
        stops: ids that end an answer.
        seed: of places and tokens.

    Raises:
        InputError: a row has nothing to replace, or all demonstrations say one and the same token.
    """
    open_places = mask & ~torch.isin(tokens, torch.tensor(sorted(stops), dtype=tokens.dtype))
    words: Tensor = torch.unique(tokens[open_places])
    counts = open_places.sum(1)
    if len(words) < 2 or bool((counts == 0).any()):
        raise InputError(
            f"A demonstration has no token to corrupt (row {int(counts.argmin()) + 1}), or all of them use one and the "
            "same. Audit with demonstrations that say more than their end."
        )
    generator = np.random.default_rng(seed)
    columns = [int(generator.choice(row.nonzero().squeeze(1).numpy())) for row in open_places]
    column = torch.tensor(columns).unsqueeze(1)
    original = torch.searchsorted(words, tokens.gather(1, column).contiguous())
    drawn = torch.from_numpy(generator.integers(0, len(words) - 1, size=(len(tokens), 1)))
    # Stepping over the original leaves an even draw from all the others.
    replacement = words[drawn + (drawn >= original)]
    place = (mask.cumsum(1) - 1).gather(1, column).squeeze(1)
    return Corrupted(tokens.scatter(1, column, replacement), place)
