"""Is one policy better than another? Scores paired by prompt, with intervals and p-values that can be trusted.

A score is any number per prompt: 0 or 1 for a verifier's verdict on one response, or the share of right ones among
several. Two policies are compared on the same prompts, because prompts differ far more than policies do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import binom, ndtr, ndtri

from dpr_lightning.errors import InputError

Verdict = Literal["better", "no detectable difference", "worse"]

# Numbers sampled at a time: the memory of a bootstrap, 64 MiB, whatever the number of prompts and resamples.
_BLOCK = 1 << 23


@dataclass(frozen=True)
class MeanInterval:
    """A mean of ``n`` scores, its ``standard_error``, and its confidence interval [``low``, ``high``]."""

    mean: float
    standard_error: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedComparison:
    """The mean of a − b over ``n`` pairs, with its uncertainty.

    ``difference``, ``standard_error`` and the confidence interval [``low``, ``high``] are in the unit of the scores;
    ``p_value`` is two-sided, for the hypothesis of no difference.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float
    n: int


def mean_interval(
    scores: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> MeanInterval:
    """Mean of independent scores with a BCa bootstrap interval; Wilson's interval where all scores are 0 or 1.

    Wilson's holds near 0 and 1, where resampling a hundred right answers would claim certainty.

    Args:
        scores: [N], one per prompt, N ≥ 2.
        confidence: coverage of the interval, in (0, 1).
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: fewer than 2 scores, scores that are not finite, or an option out of range.
    Source: Wilson 1927; Efron 1987.
    """
    values = _scores("scores", scores)
    _expect_options(confidence, resamples)
    if np.isin(values, (0.0, 1.0)).all():
        interval = stats.binomtest(int(values.sum()), len(values)).proportion_ci(confidence, method="wilson")
        low, high = float(interval.low), float(interval.high)
    else:
        low, high = _bca(values, confidence, resamples, np.random.default_rng(seed))
    return MeanInterval(float(values.mean()), _standard_error(values), low, high, len(values))


def paired_comparison(
    scores_a: ArrayLike, scores_b: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedComparison:
    """Mean of a − b over prompts: BCa bootstrap interval, and the p-value of a sign-flip permutation test.

    The hypothesis of the test is that a and b could be exchanged on every prompt. With scores of 0 and 1 it is
    McNemar's exact test.

    Args:
        scores_a: [N], the score of policy a on each prompt, N ≥ 2.
        scores_b: [N], that of policy b on the same prompts in the same order.
        confidence: coverage of the interval, in (0, 1).
        resamples: bootstrap samples; also the random sign flips, where enumerating all of them would take more.
        seed: of both.

    Raises:
        ValueError: scores that differ in number, fewer than 2, not finite, or an option out of range.
    Source: Efron 1987; Fisher 1935. Among random flips the observed signs count as one (Phipson & Smyth 2010): p > 0.
    """
    differences = _differences(scores_a, scores_b)
    _expect_options(confidence, resamples)
    generator = np.random.default_rng(seed)
    low, high = _bca(differences, confidence, resamples, generator)
    return PairedComparison(
        difference=float(differences.mean()),
        standard_error=_standard_error(differences),
        low=low,
        high=high,
        p_value=_sign_flip_p_value(differences, resamples, generator),
        n=len(differences),
    )


def hierarchical_comparison(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]], *, confidence: float = 0.95
) -> PairedComparison:
    """Mean of a − b over training seeds and prompts, both drawn at random:  d_sp = μ + seed_s + prompt_p + rest_sp.

        difference = mean_s mean_p d_sp
        variance   = σ²_seed/S + σ²_prompt/P + σ²_rest/(S·P)

    The variances come from the means over prompts, the means over seeds and what is left (two-way analysis of
    variance), the interval from Student's t with Satterthwaite's degrees of freedom. A bootstrap over a handful of
    seeds would be too narrow: it cannot see more spread than S draws show. If seeds differ in their number of prompts
    these cannot be the same ones, and the prompts count as drawn anew for each seed.

    Args:
        pairs: for each seed (scores of a, scores of b), each [P]; S ≥ 2 seeds. Prompts that all seeds share come in
            the same order; prompts drawn anew for each seed are as good.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        ``n`` counts all pairs, over seeds and prompts.

    Raises:
        ValueError: fewer than 2 seeds, scores that do not pair up or are not finite, or a confidence out of range.
    Source: Satterthwaite 1946; Searle, Casella & McCulloch 1992, ch. 4.
    """
    _expect_options(confidence, 1)
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} seed: their spread needs at least 2. Use paired_comparison for one.")
    rows = [_differences(a, b) for a, b in pairs]
    seeds = len(rows)
    means = np.array([row.mean() for row in rows])
    by_seed = float(means.var(ddof=1)) / seeds
    if len({len(row) for row in rows}) == 1:
        table = np.stack(rows)
        prompts = table.shape[1]
        by_prompt = float(table.mean(axis=0).var(ddof=1)) / prompts
        rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
        prompt_freedom, rest_freedom = prompts - 1, (seeds - 1) * (prompts - 1)
        shared = float(np.square(rest).sum()) / rest_freedom / (seeds * prompts)
    else:
        by_prompt = sum(float(row.var(ddof=1)) / len(row) for row in rows) / seeds**2
        prompt_freedom = rest_freedom = sum(len(row) for row in rows) - seeds
        shared = by_prompt
    # both by_seed and by_prompt hold σ²_rest/(S·P); an estimate may not fall below either of them
    variance = max(by_seed + by_prompt - shared, by_seed, by_prompt)
    difference = float(means.mean())
    n = sum(len(row) for row in rows)
    if variance <= (1e-12 * max(float(np.abs(row).max()) for row in rows)) ** 2:
        return PairedComparison(difference, 0.0, difference, difference, 1.0 if difference == 0.0 else 0.0, n)
    freedom = variance**2 / (by_seed**2 / (seeds - 1) + by_prompt**2 / prompt_freedom + shared**2 / rest_freedom)
    freedom = max(freedom, float(seeds - 1))
    error = variance**0.5
    reach = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error
    p_value = 2.0 * float(stats.t.sf(abs(difference) / error, freedom))
    return PairedComparison(difference, error, difference - reach, difference + reach, p_value, n)


def pass_at_k(correct: ArrayLike, k: int) -> float:
    """Chance that at least one of k samples is right, averaged over prompts:  mean_p 1 − C(n−c_p, k) / C(n, k).

    Args:
        correct: [N, n], whether each of n samples of each of N prompts is right.
        k: samples drawn without replacement from the n, 1 ≤ k ≤ n.

    Returns:
        Unbiased for k fresh samples, unlike 1 − (1 − c/n)^k.

    Raises:
        ValueError: ``correct`` is not a table, or k is out of range.
    Source: Chen et al. 2021, arXiv:2107.03374.
    """
    table = np.asarray(correct).astype(bool)
    if table.ndim != 2 or not 1 <= k <= table.shape[1]:
        raise ValueError(f"pass@{k} of a table of shape {table.shape}: k counts from 1 to the samples of a prompt.")
    wrong = table.shape[1] - table.sum(axis=1)
    return float(1.0 - (binom(wrong, k) / binom(table.shape[1], k)).mean())


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p-values adjusted for several tests:  p̃_(i) = max_{j≤i} min(1, (m − j + 1)·p_(j)).

    Rejecting where p̃ < α keeps the chance of any false rejection below α, whatever the dependence.

    Args:
        p_values: [m], each in [0, 1].

    Returns:
        [m], in the order given.

    Raises:
        ValueError: a value outside [0, 1].
    Source: Holm 1979. scipy corrects for false discoveries alone, and statsmodels is not among the dependencies.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p_values is {values.tolist()}, expected a list of numbers in [0, 1].")
    order = np.argsort(values, kind="stable")
    adjusted = np.maximum.accumulate(np.minimum(1.0, values[order] * np.arange(len(values), 0, -1)))
    result = np.empty_like(values)
    result[order] = adjusted
    return result


def verdict(comparison: PairedComparison, significance: float = 0.05) -> Verdict:
    """The comparison in words: better or worse only if the interval excludes 0 *and* p < ``significance``.

    Both are asked for because each can be fooled alone: a bootstrap of three equal differences has no width.
    """
    if comparison.p_value < significance:
        if comparison.low > 0:
            return "better"
        if comparison.high < 0:
            return "worse"
    return "no detectable difference"


def _scores(name: str, scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"{name} has shape {values.shape}, expected [N] with at least 2 scores, one per prompt.")
    if not np.isfinite(values).all():
        index = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"{name}[{index}] is {values[index]}: every prompt needs a finite score.")
    return values


def _differences(scores_a: ArrayLike, scores_b: ArrayLike) -> NDArray[np.float64]:
    a, b = _scores("scores_a", scores_a), _scores("scores_b", scores_b)
    if len(a) != len(b):
        raise ValueError(f"scores_a has {len(a)} scores and scores_b {len(b)}: a pair is one prompt scored for both.")
    return a - b


def _expect_options(confidence: float, resamples: int) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}, expected a number in (0, 1), such as 0.95.")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, expected at least 1.")


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _blocks(total: int, width: int) -> Iterator[int]:
    step = max(1, _BLOCK // max(1, width))
    for start in range(0, total, step):
        yield min(step, total - start)


def _bca(
    values: NDArray[np.float64], confidence: float, resamples: int, generator: np.random.Generator
) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of a mean (Efron 1987)."""
    n, mean = len(values), float(values.mean())
    deviations = values - mean
    square = float(np.square(deviations).sum())
    if square <= n * (1e-12 * float(np.abs(values).max())) ** 2:
        return mean, mean
    draws = np.concatenate(
        [values[generator.integers(n, size=(count, n))].mean(axis=1) for count in _blocks(resamples, n)]
    )
    # binary scores make many draws equal to the mean: half of those count as below it
    rounding = 1e-12 * float(np.abs(values).max())
    below = ((draws < mean - rounding).sum() + 0.5 * (np.abs(draws - mean) <= rounding).sum()) / resamples
    bias = float(ndtri(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples)))
    acceleration = float((deviations**3).sum()) / (6.0 * square**1.5)
    edges = bias + ndtri([0.5 - confidence / 2, 0.5 + confidence / 2])
    low, high = np.quantile(draws, ndtr(bias + edges / (1.0 - acceleration * edges)))
    return float(low), float(high)


def _sign_flip_p_value(differences: NDArray[np.float64], resamples: int, generator: np.random.Generator) -> float:
    """Share of sign assignments whose sum is as far from 0 as the one observed."""
    magnitude = np.abs(differences[differences != 0.0])
    if not len(magnitude):
        return 1.0
    if np.ptp(magnitude) <= 1e-12 * magnitude.max():
        return float(stats.binomtest(int((differences > 0).sum()), len(magnitude)).pvalue)
    bar = abs(float(differences.sum())) - 1e-12 * float(magnitude.sum())
    if len(magnitude) < 63 and 2 ** len(magnitude) <= resamples:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(magnitude))[:, None] >> np.arange(len(magnitude))) & 1)
        return float((np.abs(signs @ magnitude) >= bar).mean())
    extreme = 0
    for count in _blocks(resamples, len(magnitude)):
        signs = 1.0 - 2.0 * generator.integers(2, size=(count, len(magnitude)), dtype=np.int8)
        extreme += int((np.abs(signs @ magnitude) >= bar).sum())
    return (extreme + 1) / (resamples + 1)
