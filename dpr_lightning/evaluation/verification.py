"""Generation and verification: how much better the best of n samples is, by each way of ranking them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from dpr_lightning.evaluation.comparisons import CorrectedComparison, corrected
from dpr_lightning.evaluation.ranking import auc_within_groups
from dpr_lightning.evaluation.statistics import MeanInterval, mean_interval, paired_comparison

ORACLE = "oracle"
Table = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """One way to pick answers.

    ``auc``: chance to rank a right answer above a wrong one to the same prompt; ``best_of``: by n, the expected score
    of the best of n; ``length``: by n, its expected length in tokens; ``gain``: at the largest n, over one sample,
    corrected for the number of rankings.
    """

    name: str
    auc: float
    best_of: dict[int, MeanInterval]
    length: dict[int, float]
    gain: CorrectedComparison

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an AUC without any pair is None."""
        return asdict(self) | {"auc": None if np.isnan(self.auc) else self.auc}


def best_of_curve(ranking: ArrayLike, score: ArrayLike, counts: Sequence[int]) -> Table:
    """Expected score of the answer that ``ranking`` ranks first among n of the N samples of each prompt.

    Exact over all C(N, n) subsets, hence unbiased for n fresh samples: with answers in falling order of ``ranking``,
    answer i (from 1) is the best of a subset with probability C(N − i, n − 1) / C(N, n). Tied answers share the
    probability of their ranks.

    Args:
        ranking: [P, N], the numbers that answers are picked by.
        score: [P, N], the numbers that are averaged.
        counts: n, each in 1…N.

    Returns:
        [len(counts), P].

    Raises:
        ValueError: shapes that differ, a NaN, or an n out of range.
    """
    rewards, scores = np.asarray(ranking, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if rewards.ndim != 2 or rewards.shape != scores.shape:
        raise ValueError(f"ranking has shape {rewards.shape} and score {scores.shape}; both are [prompts, samples].")
    if np.isnan(rewards).any() or np.isnan(scores).any():
        raise ValueError("A NaN has no rank.")
    samples = rewards.shape[1]
    if any(not 1 <= count <= samples for count in counts):
        raise ValueError(
            f"The best of {list(counts)} of {samples} samples: n counts from 1 to the samples of a prompt."
        )
    order = np.argsort(-rewards, axis=1, kind="stable")
    shared = np.empty_like(scores)
    for row, ranked in enumerate(order):
        _, group = np.unique(-rewards[row, ranked], return_inverse=True)
        shared[row] = (np.bincount(group, scores[row, ranked]) / np.bincount(group))[group]
    return np.asarray(np.array([_chances(samples, count) for count in counts]) @ shared.T)


def _chances(samples: int, count: int) -> Table:
    """C(N − i, n − 1) / C(N, n) for i = 1…N; in logarithms, since the coefficients overflow float64 near N = 1,030."""
    rank = np.arange(1, samples - count + 2)

    def log_binomial(n: Any, k: Any) -> Any:
        return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)

    chance = np.exp(log_binomial(samples - rank, count - 1) - log_binomial(samples, count))
    return np.pad(chance / chance.sum(), (0, count - 1))


def verification(
    rankings: Mapping[str, ArrayLike], score: ArrayLike, length: ArrayLike, counts: Sequence[int]
) -> list[Ranking]:
    """The best-of-n curve of every ranking, and of the oracle, which picks by the true score.

    Args:
        rankings: by name, [P, N].
        score: [P, N], true score of each sample.
        length: [P, N], tokens.
        counts: n of the curves, rising.

    Returns:
        Rankings in the order of ``rankings``, the oracle last.
    """
    truth = np.asarray(score, dtype=np.float64)
    prompts = np.repeat(np.arange(len(truth)), truth.shape[1])
    named = {name: np.asarray(ranking, dtype=np.float64) for name, ranking in [*rankings.items(), (ORACLE, truth)]}
    scores = {name: best_of_curve(values, truth, counts) for name, values in named.items()}
    lengths = {name: best_of_curve(values, length, counts) for name, values in named.items()}
    gains = corrected({name: {"gain": paired_comparison(curve[-1], truth.mean(1))} for name, curve in scores.items()})
    return [
        Ranking(
            name=name,
            auc=auc_within_groups(values.ravel(), truth.ravel() == 1.0, prompts),
            best_of={count: mean_interval(row) for count, row in zip(counts, scores[name], strict=True)},
            length={count: float(row.mean()) for count, row in zip(counts, lengths[name], strict=True)},
            gain=gains[name]["gain"],
        )
        for name, values in named.items()
    ]


def in_words(rankings: Sequence[Ranking]) -> str:
    """Sentences on the best ranking, its gain, its share of the oracle's gain, and rankings worse than chance."""
    *ours, oracle = rankings
    best = max(ours, key=lambda ranking: (ranking.gain.verdict == "better", ranking.gain.difference))
    most = max(best.best_of)
    one, picked = best.best_of[min(best.best_of)].mean, best.best_of[most].mean
    lines = [
        f"One sample scores {one:.3f}; the best of {most} by {best.name} scores {picked:.3f}, by an oracle "
        f"{oracle.best_of[most].mean:.3f}."
    ]
    if best.gain.verdict != "better":
        lines.append("No ranking picks better than chance, corrected for the number of rankings.")
    elif oracle.gain.difference > 0:
        lines.append(
            f"That is {picked - one:+.3f}, {best.gain.difference / oracle.gain.difference:.0%} of what picking can "
            f"gain; 95% interval {best.gain.low:+.3f} to {best.gain.high:+.3f}, not corrected for choosing the best of "
            f"{len(ours)} rankings."
        )
    gamed = [ranking.name for ranking in ours if ranking.gain.verdict == "worse"]
    if gamed:
        lines.append(f"Picked by {', '.join(gamed)}, the best of {most} is worse than one sample: the reward is gamed.")
    return "\n".join(lines)
