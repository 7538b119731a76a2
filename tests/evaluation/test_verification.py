"""Best-of-n curves against every subset, and the words about them."""

from itertools import combinations

import numpy as np
import pytest

from dpr_lightning.evaluation.comparisons import corrected
from dpr_lightning.evaluation.statistics import MeanInterval, PairedComparison, pass_at_k
from dpr_lightning.evaluation.verification import Ranking, best_of_curve, in_words, verification


def test_curve_is_the_mean_over_all_subsets() -> None:
    generator = np.random.default_rng(0)
    # Few values, so that many rank alike.
    ranking, score = generator.integers(0, 3, (4, 6)), generator.random((4, 6))
    for count in (1, 2, 4, 6):
        expected = np.zeros(4)
        for row in range(4):
            picks = []
            for subset in map(list, combinations(range(6), count)):
                best = ranking[row, subset].max()
                picks.append(np.mean([score[row, index] for index in subset if ranking[row, index] == best]))
            # Among those that rank alike a subset holds each equally often, so the group's mean is what is expected.
            expected[row] = np.mean(picks)
        np.testing.assert_allclose(best_of_curve(ranking, score, [count])[0], expected, atol=1e-12)


def test_one_sample_is_the_mean_and_all_samples_are_the_best() -> None:
    generator = np.random.default_rng(1)
    ranking, score = generator.normal(size=(5, 8)), generator.random((5, 8))
    one, every = best_of_curve(ranking, score, [1, 8])
    np.testing.assert_allclose(one, score.mean(1), atol=1e-12)
    np.testing.assert_allclose(every, np.take_along_axis(score, ranking.argmax(1)[:, None], 1)[:, 0], atol=1e-12)


def test_oracle_is_pass_at_n() -> None:
    score = (np.random.default_rng(2).random((20, 10)) < 0.2).astype(float)
    result = verification({"noise": np.random.default_rng(3).random((20, 10))}, score, score, [1, 3, 10])
    assert [ranking.name for ranking in result] == ["noise", "oracle"]
    for count, interval in result[1].best_of.items():
        assert interval.mean == pytest.approx(pass_at_k(score, count))
    assert result[1].auc == 1.0
    assert result[1].to_dict()["best_of"][3]["mean"] == result[1].best_of[3].mean


def test_words_name_the_best_and_what_is_gamed() -> None:
    generator = np.random.default_rng(4)
    score = (generator.random((200, 16)) < 0.4).astype(float)
    good = score + generator.normal(size=score.shape)
    # Right for most of its range and wrong at its top: better with few samples, worse with many.
    bad = good.copy()
    bad[:, 0], score[:, 0] = 9.0, 0.0
    result = verification({"good": good, "bad": bad}, score, score, [1, 2, 4, 8, 16])
    words = in_words(result)
    assert "best of 16 by good scores" in words
    assert "of what picking can gain" in words
    assert "Picked by bad, the best of 16 is worse than one sample: the reward is gamed." in words


@pytest.mark.slow
def test_rankings_that_know_nothing_are_not_called_gamed() -> None:
    generator = np.random.default_rng(5)
    score = (generator.random((200, 64)) < generator.random((200, 1))).astype(float)
    accused = 0
    for _ in range(20):
        noise = {f"noise_{index}": generator.random(score.shape) for index in range(8)}
        words = in_words(verification(noise, score, score, [1, 8, 64]))
        accused += "gamed" in words or "No ranking picks better" not in words
    assert accused <= 3


def test_chances_hold_for_many_samples() -> None:
    score = (np.random.default_rng(6).random((3, 1500)) < 0.3).astype(float)
    curve = best_of_curve(np.random.default_rng(7).random((3, 1500)), score, [1, 2, 515, 1500])
    assert np.isfinite(curve).all()
    np.testing.assert_allclose(best_of_curve(score, np.ones_like(score), [1, 7, 700, 1500]), 1.0, atol=1e-9)
    np.testing.assert_allclose(curve[0], score.mean(1), atol=1e-9)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="both are"):
        best_of_curve([[1.0, 2.0]], [[1.0]], [1])
    with pytest.raises(ValueError, match="NaN"):
        best_of_curve([[1.0, float("nan")]], [[1.0, 0.0]], [1])
    with pytest.raises(ValueError, match="n counts from 1"):
        best_of_curve([[1.0, 2.0]], [[1.0, 0.0]], [3])


def test_words_follow_the_verdicts_of_the_rankings() -> None:
    """The ranking with the largest difference is not named if another one passes the correction and it does not."""

    def interval(mean: float) -> MeanInterval:
        return MeanInterval(mean, 0.01, mean - 0.02, mean + 0.02, 100)

    gains = {
        "noisy": PairedComparison(0.3, 0.15, 0.01, 0.59, 0.04, 100),
        "sure": PairedComparison(0.1, 0.01, 0.08, 0.12, 0.001, 100),
        "weak": PairedComparison(0.05, 0.03, -0.01, 0.11, 0.1, 100),
        "oracle": PairedComparison(0.4, 0.01, 0.38, 0.42, 0.001, 100),
    }

    def words(*names: str) -> str:
        judged = corrected({name: {"gain": gains[name]} for name in names})
        curves = {name: {1: interval(0.5), 8: interval(0.5 + gains[name].difference)} for name in names}
        return in_words([Ranking(name, 0.6, curves[name], {1: 9.0, 8: 9.0}, judged[name]["gain"]) for name in names])

    assert "the best of 8 by sure scores 0.600" in words("noisy", "sure", "weak", "oracle")
    assert "No ranking picks better than chance" in words("noisy", "weak", "oracle")
