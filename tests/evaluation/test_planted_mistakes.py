"""Mistakes that are planted in answers of any kind, and the precision of a list of them by hand."""

from collections import Counter

import numpy as np
import pytest

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.list_precision import list_precision, worst_order
from dpr_lightning.evaluation.planted_mistakes import describe_kinds, plant_mistakes

ANSWERS = [f"First, {n} apples.\n\nThen {n + 1} pears.\nAnswer: {2 * n + 1}" for n in range(10, 40)]


def test_the_kinds_take_turns_and_change_what_they_say() -> None:
    planted = plant_mistakes(ANSWERS, 0.3, seed=3)
    assert Counter(mistake.kind for mistake in planted) == {"number": 3, "left_out": 3, "swap": 3}
    assert len({mistake.index for mistake in planted}) == 9
    kinds = [mistake.kind for mistake in planted]
    assert describe_kinds(kinds, []) == "0 of 3 changed numbers, 0 of 3 lines left out, 0 of 3 answers of other rows"
    assert describe_kinds(["swap", "number", "swap"], ["swap"]) == "0 of 1 changed number, 1 of 2 answers of other rows"
    for mistake in planted:
        right, lines = ANSWERS[mistake.index], mistake.text.splitlines()
        if mistake.kind == "number":
            changed = [new for old, new in zip(right, mistake.text, strict=True) if old != new]
            assert len(changed) == 1
            assert changed[0].isdigit()
        elif mistake.kind == "left_out":
            assert len(lines) in (2, 3)
            assert all(line in right.splitlines() for line in lines)
        else:
            assert mistake.text in ANSWERS
        assert mistake.text != right
    assert plant_mistakes(ANSWERS, 0.3, seed=3) == planted
    assert plant_mistakes(ANSWERS, 0.3, seed=4) != planted


def test_a_kind_that_an_answer_cannot_have_gives_way_to_another() -> None:
    words = ["yes", "no", "perhaps"] * 5
    planted = plant_mistakes(words, 0.4, seed=0)
    assert {mistake.kind for mistake in planted} == {"swap"}
    assert len(planted) == 6
    assert len(plant_mistakes(ANSWERS, 0.001, seed=0)) == 1  # one at least
    replaceable = plant_mistakes(ANSWERS, 0.1, seed=0, is_possible=lambda index, text: index < 5)
    assert {mistake.index for mistake in replaceable} < set(range(5))


def test_what_cannot_be_planted_is_refused() -> None:
    for share in (0.0, -1.0, 0.6, float("nan")):
        with pytest.raises(InputError, match="`plant` is"):
            plant_mistakes(ANSWERS, share, seed=0)
    with pytest.raises(InputError, match="cannot put a mistake into any answer"):
        plant_mistakes(["yes"] * 20, 0.1, seed=0)


def test_precision_of_a_list_by_hand() -> None:
    is_mistake = [True, False, True, True] + [False] * 20 + [True] + [False] * 5
    result = list_precision(is_mistake)
    assert (result.rows, result.mistakes, result.ranks) == (30, 4, (1, 3, 4, 25))
    assert result.average_precision == pytest.approx((1 + 2 / 3 + 3 / 4 + 4 / 25) / 4)
    assert [(first, result.hits(first)) for first in result.firsts] == [(10, 3), (25, 4)]
    assert (result.rows_with(0.5), result.rows_with(0.9), result.rows_with(0.01)) == (3, 25, 1)
    recall, precision = zip(*result.curve(), strict=True)
    assert recall == (0.25, 0.5, 0.75, 1.0)
    assert precision == pytest.approx((1, 2 / 3, 3 / 4, 4 / 25))
    top = result.to_dict()["top"][0]
    assert {name: top[name] for name in ("first", "hits", "precision", "recall")} == {
        "first": 10, "hits": 3, "precision": 0.3, "recall": 0.75,
    }  # fmt: skip
    # Wilson's interval of 3 in 4: (p + z²/2n ± z√(p(1−p)/n + z²/4n²)) / (1 + z²/n).
    assert top["interval"] == pytest.approx([0.3006, 0.9544], abs=1e-3)
    order = worst_order(np.array([0.0, 2.0, 0.0, 2.0]), np.array([True, True, False, False]))
    assert order == [3, 1, 2, 0]  # of equal rows the mistake is the later one
    short = list_precision([False, True])
    assert (short.firsts, short.average_precision) == ((2,), 0.5)
    assert short.recall_interval(2)[1] == 1.0
