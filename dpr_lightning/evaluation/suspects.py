"""Demonstrations to check: those with the tokens that fine-tuning moved away from most."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dpr_lightning.rollouts import decode_tokens

CONTEXT = 12
"""Number of tokens of context on each side."""


@dataclass(frozen=True)
class Suspect:
    """The token of lowest reward in one demonstration: file and row, its ``reward`` in nats, and the text around it."""

    where: str
    reward: float
    before: str
    token: str
    after: str


def suspects(
    reward: Tensor, tokens: Tensor, mask: Tensor, tokenizer: PreTrainedTokenizerBase, where: Sequence[str]
) -> list[Suspect]:
    """The token of lowest reward of each demonstration, lowest first.

    Args:
        reward: [B, T] token rewards, nats, action-aligned.
        tokens: [B, L] token ids.
        mask: [B, L] True where the demonstration acts.
        tokenizer: decodes.
        where: file and row of each demonstration.
    """
    result = []
    for row, name in enumerate(where):
        columns = mask[row].nonzero().squeeze(1)
        action = int(reward[row, : len(columns)].argmin())
        column = int(columns[action])
        ids = tokens[row].tolist()
        end = int(columns[-1]) + 1
        result.append(
            Suspect(
                name,
                float(reward[row, action]),
                decode_tokens(tokenizer, ids[max(0, column - CONTEXT) : column]),
                decode_tokens(tokenizer, [ids[column]]),
                decode_tokens(tokenizer, ids[column + 1 : min(end, column + 1 + CONTEXT)]),
            )
        )
    return sorted(result, key=lambda suspect: suspect.reward)
