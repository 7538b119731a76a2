"""Does a reward separate right from wrong, and locate what is wrong? A test on demonstrations, before any RL."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dpr_lightning.evaluation.ranking import auc, auc_within_groups

LOCALISES, SEPARATES = 0.1, 0.8
"""Limits for a reward: the corrupted token's median rank at most, and the share of twins ranked lower at least."""

Numbers = NDArray[np.float64]


class Rewarded(NamedTuple):
    """Token rewards of some responses: ``reward`` [B, T], nats; ``mask`` [B, T] True for real actions."""

    reward: Numbers
    mask: NDArray[np.bool_]

    @property
    def total(self) -> Numbers:
        """Σ_t r_t of each response, [B]."""
        return np.asarray(np.where(self.mask, self.reward, 0.0).sum(1), dtype=np.float64)


@dataclass(frozen=True)
class RewardAudit:
    """One form of the reward against one reference.

    Attributes:
        reference: the checkpoint that the reward is measured from.
        form: of the reward.
        twins: share of demonstrations whose total reward is above that of their corrupted twin; ties count half.
        twins_auc: the same over all pairs of a demonstration and a corrupted one.
        place: median rank of the corrupted token among the tokens of its response ordered by reward: 0 has the lowest
            reward of all, 1 the highest.
        lowest_tenth: share of corrupted tokens in the lowest tenth of their response.
        samples_auc: chance that a demonstration ranks above a sample of π_SFT for its prompt. High where π_SFT is
            still worse than its demonstrations; ½ where the reward does not separate them, or they do not differ.
        verifier_auc: chance that a right sample ranks above a wrong one for its prompt; None without a verifier or
            without both.
        length_correlation: Spearman's, of total reward with length over samples; None when either is constant.
        end_share: share of Σ|r| over samples that is on the last token.
    """

    reference: str
    form: str
    twins: float
    twins_auc: float
    place: float
    lowest_tenth: float
    samples_auc: float
    verifier_auc: float | None
    length_correlation: float | None
    end_share: float

    @property
    def passes(self) -> bool:
        """Whether the reward locates the wrong token and prefers the demonstration without it."""
        against = self.verifier_auc is not None and self.verifier_auc <= 0.5
        return self.place <= LOCALISES and self.twins >= SEPARATES and not against


def audit_reward(
    reference: str,
    form: str,
    demonstrations: Rewarded,
    corrupted: Rewarded,
    changed: NDArray[np.int64],
    answered: Rewarded,
    samples: Rewarded,
    scores: Sequence[float] | None = None,
) -> RewardAudit:
    """Measure one reward.

    Args:
        reference: name.
        form: name.
        demonstrations: rewards of N demonstrations.
        corrupted: of the same, with one token changed.
        changed: [N] index of the changed action.
        answered: the demonstrations' actions that answer the samples' prompts: of a conversation, its last turn.
        samples: of N·K samples of π_SFT, those of a prompt in adjacent rows, prompts in the demonstrations' order.
        scores: [N·K] by a verifier; above 0.5 counts as right.
    """
    count = len(demonstrations.reward)
    each = len(samples.reward) // count
    ours, twins = demonstrations.total, corrupted.total
    ranks = token_ranks(corrupted, changed)
    prompt = np.concatenate([np.arange(count), np.repeat(np.arange(count), each)])
    is_demonstration = np.arange(len(prompt)) < count
    total, length = samples.total, samples.mask.sum(1)
    demonstrated = answered.total
    right = None if scores is None else np.asarray(scores) > 0.5
    judged = float("nan") if right is None else auc_within_groups(total, right, prompt[count:])
    magnitude = np.where(samples.mask, np.abs(samples.reward), 0.0)
    last = magnitude[np.arange(len(magnitude)), length - 1]
    return RewardAudit(
        reference=reference,
        form=form,
        twins=float(((ours > twins) + 0.5 * (ours == twins)).mean()),
        twins_auc=auc(ours, twins),
        place=float(np.median(ranks)),
        lowest_tenth=float((ranks <= LOCALISES).mean()),
        samples_auc=auc_within_groups(np.concatenate([demonstrated, total]), is_demonstration, prompt),
        verifier_auc=None if np.isnan(judged) else judged,
        length_correlation=_spearman(total, length),
        end_share=float(last.sum() / max(float(magnitude.sum()), 1e-12)),
    )


def token_ranks(rewarded: Rewarded, action: NDArray[np.int64]) -> Numbers:
    """Rank by reward of one token of each response among its tokens: 0 lowest, 1 highest; [B].

    Ties count half, so that a reward that is the same for every token puts each at ½.
    """
    rows = np.arange(len(action))
    reward = rewarded.reward[rows, action][:, None]
    competitors = rewarded.mask.copy()
    competitors[rows, action] = False
    below = ((rewarded.reward < reward) + 0.5 * (rewarded.reward == reward)) * competitors
    return np.asarray(below.sum(1) / np.maximum(competitors.sum(1), 1), dtype=np.float64)


def recommend(audits: Sequence[RewardAudit], control: str) -> tuple[RewardAudit | None, str]:
    """The best reward, if any passes, and sentences about it.

    Rewards are ordered by how well they agree with the verifier, or, without one, by the share of corrupted twins they
    rank below their demonstrations; then by how low they rank the corrupted token.

    Args:
        audits: of every reference and form.
        control: name of the form that needs no reference, which is reported and not recommended.
    """
    passing = [audit for audit in audits if audit.passes and audit.form != control]
    controls = [audit for audit in audits if audit.form == control]
    if not passing:
        return None, (
            f"No reward passes: none puts the corrupted token in the lowest {LOCALISES:.0%} of its response (median) "
            f"and ranks {SEPARATES:.0%} of the corrupted demonstrations below their originals. Reinforcement learning "
            "on these rewards would follow noise. Keep references from earlier in the SFT run, or train SFT for longer."
        )
    best = max(passing, key=_order)
    text = (
        f"Use `{best.form}` against {best.reference}: it ranks {best.twins:.0%} of the demonstrations above their "
        f"corrupted twins, and puts the corrupted token at {best.place:.0%} of its response (median; 0% is lowest)."
    )
    if best.verifier_auc is not None:
        text += f" It agrees with the verifier on {best.verifier_auc:.0%} of the pairs of samples."
    if any(audit.passes and _order(audit) >= _order(best) for audit in controls):
        text += (
            f" But `{control}` needs no reference and does as well: a lower temperature may be all there is to gain."
        )
    if best.length_correlation is not None and abs(best.length_correlation) > 0.5:
        words = "longer" if best.length_correlation > 0 else "shorter"
        text += f" It prefers {words} responses (rank correlation {best.length_correlation:+.2f}): watch length."
    return best, text


def _order(audit: RewardAudit) -> tuple[float, float]:
    return (audit.twins if audit.verifier_auc is None else audit.verifier_auc, -audit.place)


def _spearman(first: Any, second: Any) -> float | None:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(stats.spearmanr(first, second).statistic)
