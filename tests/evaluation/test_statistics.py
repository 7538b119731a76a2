import dataclasses
import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from dpr_lightning.evaluation.ranking import auc, auc_within_groups
from dpr_lightning.evaluation.statistics import (
    PairedComparison,
    hierarchical_comparison,
    holm,
    mean_interval,
    paired_comparison,
    pass_at_k,
    verdict,
)


def test_the_interval_is_that_of_scipys_bca_bootstrap():
    differences = np.random.default_rng(0).exponential(size=80)
    ours = paired_comparison(differences, np.zeros(80), resamples=20_000)
    theirs = stats.bootstrap((differences,), np.mean, n_resamples=20_000, method="BCa", rng=1)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.01)
    assert ours.difference == pytest.approx(differences.mean())
    assert ours.standard_error == pytest.approx(differences.std(ddof=1) / math.sqrt(80))
    assert ours.n == 80


def test_few_pairs_are_flipped_in_every_way():
    a, b = np.array([3.0, 1.0, 4.0, 2.5, 7.0]), np.array([1.0, 2.0, 2.0, 2.0, 3.5])
    sums = [abs(float(np.dot(signs, a - b))) for signs in product((1, -1), repeat=5)]
    expected = np.mean([total >= abs(float((a - b).sum())) - 1e-12 for total in sums])
    assert paired_comparison(a, b).p_value == pytest.approx(expected)


def test_random_flips_approach_the_exact_test():
    differences = np.random.default_rng(3).normal(0.4, 1.0, size=12)
    exact = paired_comparison(differences, np.zeros(12), resamples=2**12).p_value
    sampled = paired_comparison(differences, np.zeros(12), resamples=2**12 - 1).p_value
    assert sampled != exact
    assert sampled == pytest.approx(exact, abs=0.025)


def test_scores_of_zero_and_one_get_mcnemars_test():
    a, b = np.repeat([1, 1, 0, 0], [50, 14, 4, 32]), np.repeat([1, 0, 1, 0], [50, 14, 4, 32])
    comparison = paired_comparison(a, b)
    assert comparison.p_value == pytest.approx(stats.binomtest(4, 18).pvalue)
    assert comparison.difference == pytest.approx(0.10)


def test_exchanging_the_policies_mirrors_the_comparison():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=50), generator.normal(size=50)
    one, other = paired_comparison(a, b), paired_comparison(b, a)
    assert one.difference == -other.difference
    assert one.low == pytest.approx(-other.high, abs=0.02)
    assert one.p_value == pytest.approx(other.p_value, abs=0.02)


def test_the_same_seed_gives_the_same_answer():
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    assert paired_comparison(a, b, seed=4) == paired_comparison(a, b, seed=4)
    assert paired_comparison(a, b, seed=4) != paired_comparison(a, b, seed=5)


def test_policies_that_agree_everywhere_do_not_differ():
    comparison = paired_comparison([1, 0, 1], [1, 0, 1])
    assert comparison == PairedComparison(0.0, 0.0, 0.0, 0.0, 1.0, 3)
    assert verdict(comparison) == "no detectable difference"


def test_three_equal_wins_are_no_proof():
    comparison = paired_comparison([1, 1, 1], [0, 0, 0])
    assert (comparison.low, comparison.high, comparison.p_value) == (1.0, 1.0, 0.25)
    assert verdict(comparison) == "no detectable difference"


@pytest.mark.parametrize(("shift", "words"), [(0.5, "better"), (0.0, "no detectable difference"), (-0.5, "worse")])
def test_verdicts(shift, words):
    noise = np.random.default_rng(2).normal(size=200)
    noise -= noise.mean()
    assert verdict(paired_comparison(noise + shift, np.zeros(200))) == words


def test_a_corrected_p_value_changes_the_verdict():
    comparison = PairedComparison(0.1, 0.04, 0.02, 0.18, 0.02, 400)
    assert verdict(comparison) == "better"
    corrected = holm([comparison.p_value, 0.4, 0.6])[0]
    assert verdict(dataclasses.replace(comparison, p_value=corrected)) == "no detectable difference"


def coverage(draw, truth, trials=400):
    """Share of trials whose interval holds the truth, and share with p < .05."""
    generator = np.random.default_rng(7)
    results = [draw(generator) for _ in range(trials)]
    return np.mean([r.low <= truth <= r.high for r in results]), np.mean([r.p_value < 0.05 for r in results])


def test_paired_intervals_cover_what_they_say():
    """400 trials: a true coverage of .95 is seen within ±.035 with a probability of .998."""

    def skewed(generator):
        return paired_comparison(generator.exponential(size=60), np.ones(60), resamples=800)

    def binary(generator):
        prompt = generator.random(100)  # pairs share how hard the prompt is
        return paired_comparison(generator.random(100) < prompt, generator.random(100) < prompt, resamples=800)

    for draw in (skewed, binary):
        covered, rejected = coverage(draw, 0.0)
        assert 0.915 <= covered <= 0.985
        assert rejected <= 0.085


def hierarchical_draw(generator, seeds, prompts, between_seeds, between_prompts, rest):
    return (
        between_seeds * generator.normal(size=(seeds, 1))
        + between_prompts * generator.normal(size=prompts)
        + rest * generator.normal(size=(seeds, prompts))
    )


SPREADS = {"seeds": (1.0, 0.0, 1.0), "prompts": (0.0, 1.0, 0.5), "both": (0.3, 1.0, 1.0), "neither": (0.0, 0.0, 1.0)}


@pytest.mark.parametrize("name", SPREADS)
def test_intervals_over_seeds_and_prompts_cover_what_they_say(name):
    def draw(generator):
        table = hierarchical_draw(generator, 5, 60, *SPREADS[name])
        return hierarchical_comparison([(row, np.zeros(60)) for row in table])

    covered, rejected = coverage(draw, 0.0, trials=600)
    assert covered >= 0.92
    assert rejected <= 0.08
    assert covered <= 0.998 if name == "neither" else covered <= 0.98


def test_resampling_five_seeds_would_cover_too_little():
    """Why the interval is not a bootstrap."""
    generator, covered = np.random.default_rng(7), []
    for _ in range(200):
        table = hierarchical_draw(generator, 5, 60, *SPREADS["seeds"])
        seeds = generator.integers(5, size=(400, 5))
        prompts = generator.integers(60, size=(400, 60))
        draws = table[seeds[:, :, None], prompts[:, None, :]].mean(axis=(1, 2))
        low, high = np.quantile(draws, [0.025, 0.975])
        covered.append(low <= 0 <= high)
    assert np.mean(covered) < 0.90


def test_seeds_that_dominate_give_students_interval_of_their_means():
    table = np.random.default_rng(0).normal(0.5, 1.0, size=(4, 1)) + np.tile([-1e-9, 1e-9], 10)
    comparison = hierarchical_comparison([(row, np.zeros(20)) for row in table])
    expected = stats.t.interval(0.95, 3, loc=table.mean(), scale=stats.sem(table.mean(axis=1)))
    assert (comparison.low, comparison.high) == pytest.approx(expected, rel=1e-6)
    assert comparison.p_value == pytest.approx(stats.ttest_1samp(table.mean(axis=1), 0.0).pvalue, rel=1e-6)
    assert comparison.n == 80


def test_prompts_that_dominate_give_students_interval_over_prompts():
    row = np.random.default_rng(0).normal(size=50)
    comparison = hierarchical_comparison([(row, np.zeros(50))] * 4)
    expected = stats.t.interval(0.95, 49, loc=row.mean(), scale=stats.sem(row))
    assert (comparison.low, comparison.high) == pytest.approx(expected)


def test_seeds_may_differ_in_their_prompts():
    generator = np.random.default_rng(0)
    pairs = [(generator.normal(size=n) + 1.0, generator.normal(size=n)) for n in (40, 50, 60)]
    comparison = hierarchical_comparison(pairs)
    assert comparison.low < comparison.difference < comparison.high
    assert comparison.difference == pytest.approx(np.mean([np.mean(a - b) for a, b in pairs]))
    assert comparison.n == 150


def test_wilsons_interval_for_scores_of_zero_and_one():
    interval = mean_interval([1] * 50)
    z = stats.norm.ppf(0.975)
    assert interval.low == pytest.approx(50 / (50 + z**2))
    assert interval.high == pytest.approx(1.0)
    assert interval.mean == 1.0


def test_other_means_get_a_bootstrap_interval():
    scores = np.random.default_rng(0).normal(2.0, 1.0, size=200)
    interval = mean_interval(scores)
    reach = 1.96 * scores.std(ddof=1) / math.sqrt(200)
    assert (interval.low, interval.high) == pytest.approx((scores.mean() - reach, scores.mean() + reach), abs=0.02)


def slow_auc(positive, negative):
    won = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    return sum(won) / len(won)


def test_auc_counts_pairs_and_half_of_ties():
    generator = np.random.default_rng(0)
    positive, negative = generator.integers(0, 6, 40), generator.integers(0, 5, 30)
    assert auc(positive, negative) == pytest.approx(slow_auc(positive, negative))
    assert auc([2, 3], [0, 1]) == 1.0
    assert auc([0, 1], [2, 3]) == 0.0
    assert auc([1], [1]) == 0.5
    assert auc([math.inf], [-math.inf]) == 1.0
    assert math.isnan(auc([], [1]))


def test_auc_within_groups_pools_the_pairs_of_each_prompt():
    generator = np.random.default_rng(0)
    score, correct = generator.integers(0, 6, 90), generator.random(90) < 0.5
    group = generator.integers(0, 12, 90)
    won = pairs = 0.0
    for g in range(12):
        positive, negative = score[(group == g) & correct], score[(group == g) & ~correct]
        if len(positive) and len(negative):
            won += slow_auc(positive, negative) * len(positive) * len(negative)
            pairs += len(positive) * len(negative)
    assert auc_within_groups(score, correct, group) == pytest.approx(won / pairs)


def test_differences_between_prompts_do_not_count_within_them():
    score, correct, group = [10.0, 9.0, 2.0, 1.0], [1, 0, 1, 0], ["a", "a", "b", "b"]
    assert auc_within_groups(score, correct, group) == 1.0
    assert auc([10.0, 2.0], [9.0, 1.0]) == 0.75
    assert math.isnan(auc_within_groups([1.0, 2.0], [1, 1], [0, 0]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_comparison([1, 2, 3], [1, 2]), "3 scores and scores_b 2"),
        (lambda: paired_comparison([1], [2]), "at least 2 scores"),
        (lambda: paired_comparison([1, math.nan], [2, 3]), r"scores_a\[1\] is nan"),
        (lambda: paired_comparison([1, 2], [2, 3], confidence=95), "confidence is 95"),
        (lambda: mean_interval([[1, 2]]), r"scores has shape \(1, 2\)"),
        (lambda: mean_interval([1, 2], resamples=0), "resamples is 0"),
        (lambda: hierarchical_comparison([([1, 2], [1, 1])]), "their spread needs at least 2"),
        (lambda: holm([0.5, 1.5]), r"expected a list of numbers in \[0, 1\]"),
        (lambda: auc([math.nan], [1]), r"positive\[0\] is NaN"),
        (lambda: auc_within_groups([1, 2], [1], [1, 1]), "have shapes"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples():
    correct = np.random.default_rng(0).random((6, 5)) < 0.3
    for k in range(1, 6):
        selected = [row[list(indices)].any() for row in correct for indices in combinations(range(5), k)]
        assert pass_at_k(correct, k) == pytest.approx(np.mean(selected))
    for table, k in ((correct, 0), (correct, 6), (correct[0], 1)):
        with pytest.raises(ValueError, match="k counts from 1"):
            pass_at_k(table, k)
