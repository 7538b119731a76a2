"""Demonstrations to check: those with the lowest token rewards."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dpr_lightning.rollouts import decode_tokens

CONTEXT = 12
"""Number of tokens of context on each side."""


@dataclass(frozen=True)
class Suspect:
    """One demonstration with its most suspicious token.

    Attributes:
        where: file and row.
        reward: of the token, nats.
        before: text before the token.
        token: its text.
        after: text after it.
        total: summed reward of the demonstration, nats.
        mean: reward of the demonstration a token, nats.
        index: of the demonstration in the batch.
        action: index of the token among the actions of the demonstration.
    """

    where: str
    reward: float
    before: str
    token: str
    after: str
    total: float
    mean: float
    index: int
    action: int


def suspects(
    reward: Tensor,
    tokens: Tensor,
    mask: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    where: Sequence[str],
    *,
    suspicion: Tensor | None = None,
) -> list[Suspect]:
    """The token of lowest reward of each demonstration; the most suspicious demonstration first.

    Args:
        reward: [B, T] token rewards, nats, action-aligned; or the negative suspicion of tokens that were trained on.
        tokens: [B, L] token ids.
        mask: [B, L] True where the demonstration acts.
        tokenizer: decodes.
        where: file and row of each demonstration; one that is repeated by its weight is listed once.
        suspicion: [B] by which demonstrations are ordered, the highest first; None: by their lowest token.
    """
    result: dict[str, Suspect] = {}
    for row, name in enumerate(where):
        if name in result:
            continue
        columns = mask[row].nonzero().squeeze(1)
        rewards = reward[row, : len(columns)]
        action = int(rewards.argmin())
        column = int(columns[action])
        ids = tokens[row].tolist()
        end = int(columns[-1]) + 1
        result[name] = Suspect(
            where=name,
            reward=float(rewards[action]),
            before=decode_tokens(tokenizer, ids[max(0, column - CONTEXT) : column]),
            token=decode_tokens(tokenizer, [ids[column]]),
            after=decode_tokens(tokenizer, ids[column + 1 : min(end, column + 1 + CONTEXT)]),
            total=float(rewards.double().sum()),
            mean=float(rewards.double().mean()),
            index=row,
            action=action,
        )
    if suspicion is None:
        return sorted(result.values(), key=lambda suspect: suspect.reward)
    return sorted(result.values(), key=lambda suspect: -float(suspicion[suspect.index]))
