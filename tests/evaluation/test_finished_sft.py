"""What the validations of a run say of more steps."""

import math

import pytest

from dpr_lightning.evaluation.finished_sft import RunLength, State, judge_finished

LENGTH = RunLength(100, 4.0, decays=True, doubled="`trainer.max_steps` 200", validated_often="`often`")
TWICE = "in a folder of their own: `trainer.max_steps` 200."


def curve(*values: float) -> list[tuple[float, float]]:
    """Values measured at equal distances over a run of 100 steps, the first before the first step."""
    return [(100 * index / (len(values) - 1), value) for index, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "state", "words"),
    [
        # A fall of 0.3% of the whole is a quarter of what is left.
        (
            (3.3, 0.3, 0.1, 0.04, 0.03),
            "unfinished",
            "still falls, by 25% since 75% of the run (0.04 to 0.03; epochs: 4)",
        ),
        # A run whose learning rate decays is level at its end: what it did before tells.
        (
            (3.3, 0.46, 0.0889, 0.0448, 0.0446),
            "unfinished",
            "fell by 50% since 50% of the run (0.0889 to 0.0446; epochs: 4), until the learning rate had decayed.",
        ),
        ((2.0, 1.5, 1.0, 0.98), "unfinished", "by 2% since 67% of the run"),
        # The end is above a late minimum, by less than it fell since three quarters.
        ((2.0, 1.2, 1.1, 1.0, 1.05, 0.8, 0.81), "unfinished", "by 19% since 50% of the run"),
        ((2.0, 1.0, 0.82, 0.8, 0.796), "level", "changed by less than 1% since 75% of the run"),
        ((2.0, 1.0, 0.8, 0.9, 0.88), "risen", "was lowest at 50% of the run and has risen by 10% since (0.8 to 0.88"),
        ((2.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.42), "unfinished", "still falls, by 16%"),
        ((1.0, 1.2, 1.1, 1.1), "risen", "was lowest before the first step and has risen by 10%"),
        ((2.0, 0.0, 0.0, 0.0), "level", "changed by less than 1%"),
        ((2.0, 1.0), "unknown", "it was validated twice, and that takes three validations: `often`."),
        ((2.0, math.nan, 1.0), "unknown", "it was validated twice"),
    ],
)
def test_the_end_of_a_run_is_compared_with_what_was_before(values: tuple[float, ...], state: State, words: str) -> None:
    verdict = judge_finished(curve(*values), LENGTH)
    assert verdict.state == state
    assert words in verdict.reason
    assert verdict.reason.endswith(TWICE) == (state in ("unfinished", "level"))


def test_a_level_end_says_little_where_the_learning_rate_decays() -> None:
    level = curve(2.0, 1.0, 0.82, 0.8, 0.799)
    assert "any run is level at its end" in judge_finished(level, LENGTH).reason
    constant = judge_finished(level, RunLength(100, None, False, "`trainer.max_steps` 200", ""))
    assert constant.reason == "Validation loss has changed by less than 1% since 75% of the run (0.8 to 0.799)."


@pytest.mark.parametrize(
    ("answers", "prompts", "state"),
    [
        ((0.0, 0.2, 0.5, 0.6, 0.75), 200, "unfinished"),
        ((0.0, 0.2, 0.5, 0.6, 0.75), 20, "risen"),  # 25 points of 20 prompts are within two standard errors
        ((0.0, 0.2, 0.5, 0.6, 0.75), None, "risen"),
        ((0.0, 0.8, 0.5, 0.6, 0.75), 1000, "risen"),
    ],
)
def test_answers_may_rise_where_the_loss_does_too(
    answers: tuple[float, ...], prompts: int | None, state: State
) -> None:
    verdict = judge_finished(curve(2.0, 1.0, 0.8, 0.9, 0.88), LENGTH, curve(*answers), prompts)
    assert verdict.state == state
    assert verdict.reason.endswith(TWICE) == (state == "unfinished")
    assert ("right answers rises: 50.0% at 50%, 75.0% at the end (200 prompts)" in verdict.reason) == (prompts == 200)
    assert ("does not rise detectably" in verdict.reason) == (prompts in (20, 1000))


def test_nothing_is_left_to_gain_where_nearly_all_answers_are_right() -> None:
    falling = curve(2.0, 1.0, 0.8, 0.6, 0.4)
    verdict = judge_finished(falling, LENGTH, curve(0.0, 0.2, 0.5, 0.9, 0.995), 200)
    assert verdict.state == "finished"
    assert verdict.reason.endswith("99.5% of 200 answers are right: more steps could add next to nothing.")
    # An accuracy of .98 of 50 prompts may be one of .9, and the loss still falls.
    assert judge_finished(falling, LENGTH, curve(0.0, 0.2, 0.5, 0.9, 0.98), 50).state == "unfinished"
