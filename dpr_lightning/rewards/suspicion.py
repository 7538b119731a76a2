"""Which tokens and rows of the demonstrations that a run has learnt from look wrong, by what its checkpoints say.

A policy that is trained for long knows its rows by heart, mistakes too: then r̂ of a wrong token is large and positive,
and not negative. What tells it from a right one is *when* it was learnt. Right tokens follow rules that many rows
share and are learnt early; a mistake contradicts them and is learnt last, row by row. So a token is suspicious by the
mean over checkpoints of

    log max_b π_c(b|s) − log π_c(a|s)        nats, the margin by which checkpoint c prefers another token

which is the area under its margin over the run. Without the first term it is, up to what π_SFT makes of the token, the
mean of r̂ against every checkpoint: the ensemble of references.

A policy that has learnt from other rows alone knows none of these by heart: its margin is the cross-fitted suspicion.
It takes further training, a run for each fold of the rows.

Source: the margin over training is Pleiss et al. 2020, arXiv:2001.10528, there of labels of examples; labels that
cross-fitted predictions contradict are Northcutt et al. 2021, arXiv:1911.00068; of tokens, and the two levels of
:func:`suspicious_tokens`, ours (docs/noisy.md has what it is worth).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from dpr_lightning.engine import default_token_budget, model_device, parts_by_length, scored_actions, shares_prompts
from dpr_lightning.functional import is_trimmed
from dpr_lightning.functional.imitation import MARGIN, SURE

TOKEN_SHARE = 0.03
"""Share of all tokens above whose suspicion a token is marked, in rows that are listed."""


class CheckpointScores(NamedTuple):
    """What a checkpoint says of given tokens, all [B, T] in nats, 0 where there is no action.

    ``margin`` is log max_b π(b|s) − log π(a|s), how much it prefers its first choice, at least 0; ``entropy`` is that
    of π(·|s); None where it was not requested.
    """

    logprob: Tensor
    margin: Tensor
    entropy: Tensor | None = None

    def normalised_margin(self) -> Tensor:
        """[B, T] margin/(1 + entropy): lower where the checkpoint is undecided, unchanged where it is sure."""
        assert self.entropy is not None
        return self.margin / (1.0 + self.entropy)


class Suspicion(NamedTuple):
    """``token`` [B, T] nats, 0 outside ``mask``; ``mask`` [B, T]: real actions.

    ``row`` [B]: mean over its tokens, nats; of :func:`combined_suspicion` a mean of ranks in [0, 1].
    """

    token: Tensor
    mask: Tensor
    row: Tensor


@torch.no_grad()
def checkpoint_scores(
    model: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    *,
    entropy: bool = False,
    progress: Callable[[int], None] | None = None,
) -> CheckpointScores:
    """Score the acted tokens by one checkpoint, on its device.

    Args:
        model: a causal language model; its mode does not change.
        tokens: [B, L] right-padded.
        mask: [B, L] True where the demonstration acts.
        entropy: whether that of each state is computed too, for :meth:`CheckpointScores.normalised_margin`.
        progress: called after each forward pass with its number of rows.

    Returns:
        float32, on the host.
    """
    counts = mask.sum(1).cpu()
    result = CheckpointScores(*torch.zeros(2 + entropy, len(tokens), int(counts.amax()) if len(tokens) else 0))
    device, budget = model_device(model), default_token_budget(model)
    for rows, part_tokens, part_mask in parts_by_length(tokens, mask, budget, shared=shares_prompts(model)):
        scored = scored_actions(model, part_tokens.to(device), part_mask.to(device), entropy=entropy)
        acted = torch.arange(int(counts[rows].amax())) < counts[rows].unsqueeze(1)
        parts = (scored.logprob, scored.best - scored.logprob, scored.entropy)
        for whole, part in zip(result, parts, strict=True):
            if whole is None or part is None:
                continue
            whole[rows, : acted.shape[1]] = torch.zeros(acted.shape).masked_scatter(acted, part.float().cpu())
        if progress is not None:
            progress(len(rows))
    return result


def suspicion(margins: Sequence[Tensor], mask: Tensor) -> Suspicion:
    """Suspicion of every token and row.

    Args:
        margins: [B, T] of each checkpoint; any number, in any order.
        mask: [B, L] True where the demonstration acts.
    """
    token = torch.stack(list(margins)).mean(0)
    counts = mask.sum(1).cpu()
    acted = torch.arange(token.shape[1]) < counts.unsqueeze(1)
    token = token.masked_fill(~acted, 0.0)
    return Suspicion(token, acted, token.sum(1) / counts.clamp_min(1))


def rank_average(scores: Sequence[Tensor]) -> Tensor:
    """[B] the mean over several scores of a row's rank among all rows, from 0 for the lowest to 1 for the highest.

    Rows with equal scores have the mean of their ranks. Scores of different units are combined so without labels.

    Args:
        scores: [B] each.
    """
    last = max(1, len(scores[0]) - 1)
    return torch.stack([torch.from_numpy(rankdata(score.double().numpy()) - 1) / last for score in scores]).mean(0)


def combined_suspicion(parts: Sequence[Suspicion]) -> Suspicion:
    """Several suspicions of the same rows as one: of tokens the mean in nats, of rows the mean of their ranks."""
    token = torch.stack([part.token for part in parts]).mean(0)
    return Suspicion(token, parts[0].mask, rank_average([part.row for part in parts]))


def suspicious_tokens(suspected: Suspicion, rows: Tensor, threshold: float) -> Tensor:
    """Tokens above a threshold in rows that are suspicious as a whole; [B, T] bool.

    A rare fact is learnt late too, and a threshold for tokens alone takes it for a mistake wherever it occurs: the
    policy would never learn it. In suspicious rows alone, the same fact is still learnt from the others.

    Args:
        suspected: of all rows.
        rows: [B] bool, or indices of rows.
        threshold: nats.
    """
    selected = torch.zeros(len(suspected.row), dtype=torch.bool)
    selected[rows] = True
    return (suspected.token > threshold) & suspected.mask & selected.unsqueeze(1)


def refused_tokens(scores: CheckpointScores, margin: float = MARGIN, sure: float = SURE) -> Tensor:
    """Tokens of which a policy is sure that they are others; [B, T] bool.

    A policy that was trained with ``trim`` has not learnt them, although they were in its data: what it refuses at its
    end is the list that it leaves behind.

    Args:
        scores: of the policy at the end of its training.
        margin: nats, as for :func:`dpr_lightning.functional.is_trimmed`.
        sure: a probability, the same.
    """
    return is_trimmed(scores.logprob, scores.logprob + scores.margin, margin, sure)


def token_threshold(suspected: Suspicion, share: float) -> float:
    """The suspicion, nats, that this share of all tokens exceeds."""
    values = suspected.token[suspected.mask].sort(descending=True).values
    return float(values[min(len(values) - 1, round(share * len(values)))])
