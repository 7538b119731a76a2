import itertools
import json
import math

import numpy as np
import pytest
import torch

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.preview import (
    SHARPENING,
    best_weights,
    describe,
    nothing_to_rank,
    optimum_weights,
    preview,
)
from dpr_lightning.evaluation.reward_preview import default_forms
from dpr_lightning.functional import FORMS
from dpr_lightning.rewards import RewardSpec

QUICK = {"resamples": 50}


def test_weights_recover_the_exact_optimum_of_an_enumerated_policy():
    """All sequences of two tokens, π_SFT uniform: each drawn once, the estimate is the closed form itself."""
    generator = np.random.default_rng(0)
    reward = generator.normal(size=(3, 3))
    paths = list(itertools.product(range(3), repeat=2))
    returns = np.array([[reward[0, a] + reward[1, b] for a, b in paths]] * 2)
    score = np.array([[float(a == b) for a, b in paths]] * 2)
    length = np.array([[1.0 + b for _, b in paths]] * 2)
    result = preview({"r": returns}, length, score=score, betas=(0.7,), **QUICK)

    weight = {path: math.exp((reward[0, path[0]] + reward[1, path[1]]) / 0.7) for path in paths}
    total = sum(weight.values())
    point = result.reward("r").at(0.7)
    assert point.score == pytest.approx(sum(weight[a, b] for a, b in paths if a == b) / total, abs=1e-12)
    assert point.length == pytest.approx(sum(weight[a, b] * (1 + b) for a, b in paths) / total, abs=1e-12)
    assert point.effective_samples == pytest.approx(total**2 / sum(w**2 for w in weight.values()), abs=1e-10)
    assert point.effective_share == pytest.approx(point.effective_samples / 9, abs=1e-12)


def test_limits_of_beta_are_the_plain_mean_and_best_of_n():
    generator = np.random.default_rng(1)
    returns, score = generator.normal(size=(20, 8)), generator.random((20, 8)).round()
    result = preview({"r": returns}, np.ones((20, 8)), score=score, betas=(1e12, 1e-9), **QUICK)
    reward = result.reward("r")
    assert reward.at(1e12).score == pytest.approx(score.mean(), abs=1e-9)
    assert reward.at(1e12).effective_samples == pytest.approx(8, abs=1e-9)
    assert reward.at(1e-9).score == pytest.approx(reward.best_of_n, abs=1e-12)
    assert reward.best_of_n == pytest.approx(score[np.arange(20), returns.argmax(1)].mean(), abs=1e-12)
    assert reward.at(1e-9).effective_samples == pytest.approx(1.0)


def test_weights_do_not_overflow_and_ignore_an_offset_of_the_prompt():
    returns = np.array([[1e6, 1e6 + 1.0], [-1e6, -1e6 + 1.0]])
    expected = np.array([[1.0, math.e**2], [1.0, math.e**2]]) / (1 + math.e**2)
    np.testing.assert_allclose(optimum_weights(returns, 0.5), expected, atol=1e-12)


def test_equals_share_the_best_of_n():
    np.testing.assert_array_equal(
        best_weights(np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.5]])), [[0.5, 0.5, 0], [0, 1, 0]]
    )


def test_auc_compares_within_prompts_only():
    """Right responses have more reward than wrong ones of their prompt, and less than those of the other."""
    result = preview({"r": [[1.0, 0.0], [9.0, 8.0]]}, np.ones((2, 2)), score=[[1, 0], [1, 0]], **QUICK)
    assert result.reward("r").auc == 1.0
    assert preview({"r": np.eye(2)}, np.ones((2, 2)), score=np.ones((2, 2)), **QUICK).reward("r").auc is None


def test_sharpening_is_a_power_of_the_policy():
    """π_SFT over two outcomes, in exact proportion among the samples: SIR by log π gives π^{1+1/β}."""
    right = np.array([[1.0, 1.0, 1.0, 0.0]] * 2)
    logprob = np.where(right == 1, math.log(0.75), math.log(0.25))
    result = preview(
        {"zero": np.zeros((2, 4))}, np.ones((2, 4)), score=right, sft_logprob=logprob, betas=(0.5,), **QUICK
    )
    control = result.reward(SHARPENING)
    assert control.control
    assert control.at(0.5).score == pytest.approx(0.75**3 / (0.75**3 + 0.25**3), abs=1e-12)
    assert result.reward("zero").at(0.5).score == pytest.approx(0.75)


@pytest.fixture(scope="module")
def samples():
    generator = np.random.default_rng(2)
    right = (generator.random((100, 64)) < 0.5).astype(float)
    noise = generator.normal(size=(100, 64))
    return {
        "returns": {"good": right + 0.1 * noise, "bad": -right + 0.1 * noise, "noise": 0.1 * noise, "wild": 50 * noise},
        "length": 10 + 5 * (1 - right),
        "score": right,
        "sft_logprob": 0.2 * right + 0.1 * noise,
    }


def test_verdicts_in_words(samples):
    result = preview(**samples, betas=(1.0, 0.1))
    assert "is better than SFT" in describe(result, "good", 1.0)
    assert "is WORSE than SFT" in describe(result, "bad", 1.0)
    assert "no detectable difference" in describe(result, "noise", 1.0)
    untold = describe(result, "wild", 0.1)
    assert "cannot be estimated from these samples" in untold
    assert "WORSE" not in untold
    assert result.best == ("good", 0.1)
    assert result.best_control == (SHARPENING, 0.1)
    assert "good at β=0.1 looks best" in untold
    assert "above the best control" in untold
    assert result.best_against_control is not None
    assert result.best_against_control.low > 0


def test_lengths_are_told_in_words(samples):
    text = describe(preview(**samples, betas=(0.25,), **QUICK), "bad", 0.25)
    assert "against 12.5" in text
    assert "(+1" in text


def test_without_a_verifier(samples):
    result = preview(samples["returns"], samples["length"], **QUICK)
    assert result.score is None
    assert result.best is None
    assert result.reward("good").auc is None
    text = describe(result, "good", 1.0)
    assert "without a verifier" in text
    assert "expected length" in text


def test_plain_data_has_no_nan(samples):
    all_right = np.ones((100, 64))
    plain = preview(samples["returns"], samples["length"], score=all_right, **QUICK).to_dict()
    again = json.loads(json.dumps(plain, allow_nan=False))
    assert again == plain
    assert plain["rewards"][0]["points"][0]["verdict"] == "no detectable difference"
    assert plain["rewards"][0]["auc"] is None


def test_tensors_are_welcome():
    result = preview(
        {"r": torch.eye(3, requires_grad=True)}, torch.ones(3, 3), score=torch.eye(3), betas=(1.0,), **QUICK
    )
    assert result.reward("r").at(1.0).score == pytest.approx(math.e / (math.e + 2), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"length": np.ones((3, 4))}, "one number for each sample"),
        ({"length": np.ones(4)}, r"needs \[N, n\]"),
        ({"betas": (1.0, 0.0)}, "positive"),
        ({"betas": ()}, "positive"),
        ({"returns": {}}, "no reward"),
        ({"returns": {"r": [[0.0, np.nan], [0.0, 0.0]]}}, "sample 1 of prompt 0"),
    ],
)
def test_wrong_input_is_named(change, match):
    right = {"returns": {"r": np.eye(2)}, "length": np.ones((2, 2)), "score": np.eye(2)}
    with pytest.raises(InputError, match=match):
        preview(**{**right, **change}, **QUICK)


def test_asking_for_what_is_not_there(samples):
    result = preview(**samples, betas=(1.0,), **QUICK)
    with pytest.raises(InputError, match="β=2"):
        describe(result, "good", 2.0)
    with pytest.raises(InputError, match="good, bad, noise"):
        describe(result, "god", 1.0)


def test_every_form_is_previewed_once():
    plain = default_forms(RewardSpec("one_sided"))
    assert set(plain) == {*FORMS, "one_sided + ½ log π_SFT", "one_sided_centred + ½ log π_SFT"} - {"log_policy"}
    assert set(default_forms(RewardSpec({"one_sided": 1.0, "log_policy": 0.5}))) == set(plain)
    assert set(default_forms(RewardSpec("log_policy"))) == set(plain)
    other = default_forms(RewardSpec({"centred": 0.25, "log_policy": 1.0}))
    assert set(other) - set(plain) == {"0.25 centred + log π_SFT"}


@pytest.mark.parametrize(
    ("score", "cut", "says"),
    [
        ([[0, 0], [0, 0]], 0, "No sample was right: nothing can be ranked (4 samples of 2 prompts). See with `dpr eva"),
        (
            [[0, 0], [0, 0]],
            1,
            "prompts). 25% of the samples were cut at `max_new_tokens`. Raise `max_new_tokens` first",
        ),
        ([[1, 1], [1, 1]], 0, "Every sample was right: nothing can be ranked"),
        ([[0, 0], [1, 1]], 0, "The samples of each prompt score the same (0.500 on average): nothing can be ranked"),
        ([[0.5, 0.5], [0.2, 0.2]], 0, "The samples of each prompt score the same (0.350"),
    ],
)
def test_nothing_can_be_ranked(score: list[list[float]], cut: int, says: str) -> None:
    cuts = np.arange(4).reshape(2, 2) < cut
    result = preview({"r": [[0.1, 0.9], [0.3, 0.2]]}, np.ones((2, 2)), score=score, cut=cuts, betas=(1.0,), **QUICK)
    reason = nothing_to_rank(result)
    assert says in str(reason)
    assert describe(result, "r", 1.0) == reason
    assert "β" not in str(reason)
    assert (result.best, result.best_control, result.cut) == (None, None, cut / 4)


def test_what_can_be_ranked() -> None:
    returns, length = {"r": [[0.1, 0.9], [0.3, 0.2]]}, np.ones((2, 2))
    scored = preview(returns, length, score=[[0, 1], [0, 0]], cut=np.eye(2), betas=(1.0,), **QUICK)
    assert nothing_to_rank(scored) is None
    text = describe(scored, "r", 1.0)
    assert "50% of the samples were cut at `max_new_tokens`" in text
    assert "Draw more samples." in text
    assert "Raise β" not in text  # two samples a prompt are too few at every β
    assert nothing_to_rank(preview(returns, length, betas=(1.0,), **QUICK)) is None
