"""The batches that travel between the parts, and the legend of axes.

Axes:
    B  sequences of a batch; the K samples of one prompt are adjacent
    L  tokens of the longest sequence, prompt included
    T  actions (tokens the policy chose) of the sequence that has most of them
    V  vocabulary
    R  reference models

Two alignments, never mixed:
    *sequence-aligned* ``[B, L]``: ``tokens`` right-padded, ``mask`` True where the policy acted (EOS included).
    *action-aligned* ``[B, T]``: the acted positions of each row, packed to the left; log-probabilities, rewards and
    advantages live here. :func:`dpr_lightning.functional.action_positions` maps one to the other.

NamedTuples, because Lightning moves them between devices and would not move frozen dataclasses.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, NamedTuple, Protocol

import torch
from torch import Tensor

from dpr_lightning.batch_axes import ActionTensor, Axes, RowTensor, TokenTensor, select_rows


class DemonstrationBatch(NamedTuple):
    """Demonstrations to imitate.

    ``tokens`` [B, L] int64; ``mask`` [B, L] bool; ``terminated`` [B] bool: the last acted token is a real EOS;
    ``num_tokens`` [] float: acted tokens of the whole optimizer step, over accumulation and ranks;
    ``row`` [B] int64: index of each example in its data set; ``weights`` [B, L] float32 of the acted tokens' loss;
    None: all are 1. With weights, ``num_tokens`` is their sum.
    """

    tokens: Tensor
    mask: Tensor
    terminated: Tensor
    num_tokens: Tensor
    row: Tensor
    weights: Tensor | None = None


class SelfPlayBatch(NamedTuple):
    """Chosen responses, such as demonstrations, and rejected ones to the same prompts, as rows of one batch of P pairs.

    ``tokens`` [2P, L] int64 and ``mask`` [2P, L] bool: the P chosen, then the P rejected in the same order;
    ``opponent_logprob`` [2P] float32: log-probability of each whole response under the opponent, nats;
    ``num_pairs`` [] float: pairs of the whole optimizer step, over accumulation and ranks;
    ``reward_gap`` [P] float32: reward of the chosen response less that of the rejected one; None: not read.
    """

    tokens: Tensor
    mask: Tensor
    opponent_logprob: Tensor
    num_pairs: Tensor
    reward_gap: Tensor | None = None


class OnlineResponses(NamedTuple):
    """Responses that the policy in training sampled to the prompts of pairs, K to each next to each other.

    ``tokens`` [B, L] int64; ``mask`` [B, L] bool; ``opponent_logprob`` [B, T] float32: nats, of each token under the
    opponent; ``num_responses`` [] float: of the whole optimizer step, over accumulation and ranks; ``group_size``: K;
    ``opponent_distribution`` [B, T, V]: the opponent's log-probabilities of every token; None: not needed.
    """

    tokens: Tensor
    mask: Tensor
    opponent_logprob: Tensor
    num_responses: Tensor
    group_size: int
    opponent_distribution: Tensor | None = None


class HybridBatch(NamedTuple):
    """Pairs, and the policy's own responses to their prompts; None where none are sampled."""

    pairs: SelfPlayBatch
    online: OnlineResponses | None


class Rollouts(NamedTuple):
    """What a policy wrote.

    ``tokens`` [B, L] int64; ``mask`` [B, L] bool; ``terminated`` [B] bool: ended with EOS instead of the length limit;
    ``logprob`` [B, T] float32: log-probability, in nats, of each token under the distribution it was drawn from;
    ``prompt`` [B] int64: place of the prompt in its list.
    """

    tokens: Tensor
    mask: Tensor
    terminated: Tensor
    logprob: Tensor
    prompt: Tensor


class TokenScores(NamedTuple):
    """What the frozen models say of given tokens, in nats, action-aligned.

    ``policy_logprob`` [B, T] under π_SFT; ``reference_logprobs`` [R, B, T]; ``divergence`` [B, T]: KL(π_SFT‖π_ref)
    of each state, NaN where nothing asked for it; ``reward`` [B, T]; ``mask`` [B, T] bool.
    """

    policy_logprob: Tensor
    reference_logprobs: Tensor
    divergence: Tensor
    reward: Tensor
    mask: Tensor


class ActionScores(NamedTuple):
    """The reward and what the frozen models say of *every* token in some states, [n, V], at least float32, nats.

    ``sft_logprob`` is log π_SFT; ``reference_logprob`` the mean log-probability over references.
    """

    reward: Tensor
    sft_logprob: Tensor
    reference_logprob: Tensor


class AllActionScores(Protocol):
    """The scores of every token at each acted state of some rows; made for a few states at a time."""

    def scores(self, index: Tensor) -> ActionScores:
        """The scores at the states ``index`` [n], positions in the flattened [B, T]."""
        ...

    def take(self, rows: Tensor, actions: int) -> "AllActionScores":
        """Those of some rows, cut to ``actions`` columns."""
        ...


class RolloutBatch(NamedTuple):
    """Rollouts with their rewards, as the policy-gradient step takes them.

    Sequence-aligned: ``tokens``, ``mask`` [B, L]. Per row: ``terminated``, ``prompt`` [B]. Action-aligned [B, T], nats:
    ``behaviour_logprob``, ``sft_logprob``, ``reference_logprob`` (mean over references), ``reward``, ``advantage``.
    ``num_tokens`` []: acted tokens of the whole optimizer step. ``outcome`` [B] float32: the score of each whole
    response by a verifier or a learned scorer, a separate return stream; None without one. ``actions``: the same of
    *every* token, for the all-actions estimator; None otherwise. ``sampler_logprob`` [B, T]: of each token under the
    program that sampled it, if it is another than this package; ``behaviour_logprob`` is then the policy's own.
    ``policy_logprob`` [B, T]: under the policy at the start of the rollout's use, if another distribution sampled it
    (precomputed, or at a temperature); None: it is ``behaviour_logprob``. ``target`` [B]: nats of log-ratio that a
    regression learns differences of, set by ``credit``. ``group_size``: K rows next to each other respond to one
    prompt; 1 in parts that separate them.
    """

    tokens: TokenTensor
    mask: TokenTensor
    terminated: RowTensor
    prompt: RowTensor
    behaviour_logprob: ActionTensor
    sft_logprob: ActionTensor
    reference_logprob: ActionTensor
    reward: ActionTensor
    advantage: ActionTensor
    num_tokens: Tensor
    outcome: Annotated[Tensor | None, Axes.ROWS] = None
    actions: Annotated[AllActionScores | None, Axes.ACTIONS] = None
    sampler_logprob: Annotated[Tensor | None, Axes.ACTIONS] = None
    policy_logprob: Annotated[Tensor | None, Axes.ACTIONS] = None
    target: Annotated[Tensor | None, Axes.ROWS] = None
    group_size: int = 1

    @property
    def action_mask(self) -> Tensor:
        """[B, T] True for real actions."""
        width = self.reward.shape[1]
        return torch.arange(width, device=self.mask.device) < self.mask.sum(1, keepdim=True)

    def take(self, rows: Tensor) -> "RolloutBatch":
        """``rows`` [n], as wide as the whole; they count as separate from the rest of their groups."""
        taken = select_rows(self, rows, self.mask.shape[1], self.reward.shape[1])
        return taken._replace(group_size=1)

    def split(self, parts: Iterable[Tensor], *, whole_groups: bool = False) -> Iterator["RolloutBatch"]:
        """A micro-batch for each of ``parts``, which are indices of rows; cut to the longest of its rows.

        Args:
            parts: [n] each; a part of all rows is the batch itself.
            whole_groups: whether each part holds all rows of its prompts, next to each other.
        """
        for rows in parts:
            yield self if len(rows) == len(self.mask) else self._part(rows, self.group_size if whole_groups else 1)

    def _part(self, rows: Tensor, group_size: int) -> "RolloutBatch":
        mask = self.mask[rows]
        actions = int(mask.sum(1).amax()) if len(rows) else 0
        columns = torch.arange(mask.shape[1], device=mask.device)
        length = int((mask * columns).amax()) + 1 if len(rows) else 1
        return select_rows(self, rows, length, actions)._replace(group_size=group_size)
