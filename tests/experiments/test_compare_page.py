"""What the page of a comparison draws, on numbers small enough to read."""

from typing import Any

import pytest

from dpr_lightning.experiments.arm_specs import ArmSpec
from dpr_lightning.experiments.comparison_page import pairs, ranked, samples, scatters
from dpr_lightning.experiments.training_curves import over_optimisation

RIGHT = {"tokens": ["1"], "reward": [0.5], "policy_logprob": [-0.1], "reference_logprob": [-0.6]}


def _answers(rewards: list[float], correct: list[bool]) -> dict[str, Any]:
    return {
        "answers": [
            {"prompt": f"p{index}", "text": f"t{index}", "correct": right, "reward": reward, "length": 3 + index}
            for index, (reward, right) in enumerate(zip(rewards, correct, strict=True))
        ],
        "pairs": [{"prompt": "p0", "correct": RIGHT, "wrong": RIGHT}],
    }


EXAMPLES = {
    "sft": _answers([-1.0, -3.0], [True, False]),
    "far": _answers([1.0, 2.0], [False, False]),
    "near": _answers([-1.0, -2.0], [True, True]),
}
ARMS = {
    "sft": {"sampled": 0.5, "reverse_kl": 0.0},
    "far": {"sampled": 0.1, "reverse_kl": 9.0},
    "near": {"sampled": 0.9, "reverse_kl": None},
}
SPECS = {"sft": ArmSpec(), "far": ArmSpec("dpr"), "near": ArmSpec(policy="step_3")}


def test_arms_are_ranked_behind_sft() -> None:
    assert ranked(ARMS) == ["sft", "near", "far"]


def test_scatters_show_sft_and_what_training_took_furthest() -> None:
    runs = [{"promised": 0.2, "reached": reached, "reliable": True} for reached in (-0.4, 0.1)]
    preview = {"runs": {"far": runs}}
    first, second, policies, promised = scatters(EXAMPLES, SPECS, ARMS, preview)
    assert [(point.x, point.y, point.correct) for point in first.points] == [(3, -1.0, True), (4, -3.0, False)]
    assert second.title.endswith("answers of far")
    assert [(point.name, point.x, point.y) for point in policies.points] == [
        ("SFT", -2.0, 0.5),
        ("far", 1.5, 0.0),
    ]
    assert [(point.x, point.y) for point in promised.points] == [(0.2, -0.4), (0.2, 0.1)]
    assert promised.diagonal
    for few in ({}, {"far": runs[:1]}):
        assert len(scatters(EXAMPLES, SPECS, ARMS, {"runs": few})) == 3


def test_samples_keep_the_order_asked_for() -> None:
    first, second = samples(EXAMPLES, ["sft", "near", "far"])
    assert first.prompt == "p0"
    assert [(answer.policy, answer.text, answer.correct) for answer in second.answers] == [
        ("sft", "t1", False),
        ("near", "t1", True),
        ("far", "t1", False),
    ]
    assert pairs(EXAMPLES)[0].correct.reward == [0.5]


def test_reward_and_truth_along_a_run_are_drawn_over_the_root_of_kl() -> None:
    steps = range(40)
    run = {
        "rollout/reverse_kl": [(step, (step / 10) ** 2) for step in steps],
        "rollout/verifier": [(step, 1.0 - step / 40) for step in steps if step % 2 == 0],
        "rollout/reward": [(step, float(step)) for step in steps],
    }
    truth, reward = over_optimisation({"DPR": run}, blocks=10)
    assert truth.over == reward.over == "√KL"
    assert list(truth.series[0].steps) == sorted(truth.series[0].steps)
    assert list(truth.series[0].values) == sorted(truth.series[0].values, reverse=True)
    # The last block of the reward: steps 36 to 39.
    assert reward.series[0].values[-1] == pytest.approx(37.5)
    assert reward.series[0].steps[-1] == pytest.approx((sum((step / 10) ** 2 for step in (36, 37, 38, 39)) / 4) ** 0.5)
    assert over_optimisation({"SFT": {"train/nll": [(0, 1.0)]}}) == []
