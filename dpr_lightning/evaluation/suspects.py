"""Demonstrations to check: those with the tokens that fine-tuning moved most, by the reward."""

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
        index: of the demonstration in the batch.
        action: index of the token among the actions of the demonstration.
    """

    where: str
    reward: float
    before: str
    token: str
    after: str
    total: float
    index: int
    action: int


def suspects(
    reward: Tensor,
    tokens: Tensor,
    mask: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    where: Sequence[str],
    *,
    learnt: bool = False,
) -> list[Suspect]:
    """The most suspicious token of each demonstration; the most suspicious demonstration first.

    Of demonstrations that were not trained on, the token of lowest reward, and the demonstration with the lowest one
    first. Those that were trained on are memorised, wrong tokens too, and the sign is reversed: what is odd was learnt
    late, so the token of highest reward, and the demonstration with the highest total first.

    Args:
        reward: [B, T] token rewards, nats, action-aligned.
        tokens: [B, L] token ids.
        mask: [B, L] True where the demonstration acts.
        tokenizer: decodes.
        where: file and row of each demonstration; one that is repeated by its weight is listed once.
        learnt: the demonstrations were trained on.
    """
    result: dict[str, Suspect] = {}
    for row, name in enumerate(where):
        if name in result:
            continue
        columns = mask[row].nonzero().squeeze(1)
        rewards = reward[row, : len(columns)]
        action = int(rewards.argmax() if learnt else rewards.argmin())
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
            index=row,
            action=action,
        )
    return sorted(result.values(), key=lambda suspect: -suspect.total if learnt else suspect.reward)
