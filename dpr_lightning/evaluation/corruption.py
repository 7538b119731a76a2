"""Demonstrations with one wrong token, which a good reward must rank lower."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpr_lightning.errors import InputError


class Corrupted(NamedTuple):
    """``tokens`` [B, L] with one acted token changed in each row; ``action`` [B]: index of that action in its row."""

    tokens: Tensor
    action: Tensor


def corrupt_one_token(tokens: Tensor, mask: Tensor, *, stops: Collection[int], seed: int) -> Corrupted:
    """Replace one acted token of each row by another that the demonstrations use.

    The action is sampled uniformly from the row's actions, the token uniformly from all other tokens that occur as
    actions; tokens that end an answer are neither replaced nor inserted. The tokens after it are not changed.

    Args:
        tokens: [B, L] right-padded token ids.
        mask: [B, L] True where the demonstration acts.
        stops: ids that end an answer.
        seed: of actions and tokens.

    Raises:
        InputError: a row has no token to replace, or all demonstrations use the same token.
    """
    replaceable = mask & ~torch.isin(tokens, torch.tensor(sorted(stops), dtype=tokens.dtype))
    words: Tensor = torch.unique(tokens[replaceable])
    counts = replaceable.sum(1)
    if len(words) < 2 or bool((counts == 0).any()):
        raise InputError(
            f"A demonstration has no token to corrupt (row {int(counts.argmin()) + 1}), or all of them use one and the "
            "same. Audit with demonstrations that have more than their end."
        )
    generator = np.random.default_rng(seed)
    columns = [int(generator.choice(row.nonzero().squeeze(1).numpy())) for row in replaceable]
    column = torch.tensor(columns).unsqueeze(1)
    original = torch.searchsorted(words, tokens.gather(1, column).contiguous())
    sampled = torch.from_numpy(generator.integers(0, len(words) - 1, size=(len(tokens), 1)))
    # Skipping the original gives a uniform sample of all other tokens.
    replacement = words[sampled + (sampled >= original)]
    action = (mask.cumsum(1) - 1).gather(1, column).squeeze(1)
    return Corrupted(tokens.scatter(1, column, replacement), action)
