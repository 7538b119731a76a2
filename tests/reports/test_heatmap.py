import math

import pytest

from dpr_lightning.errors import InputError
from dpr_lightning.reports.content import Response
from dpr_lightning.reports.heatmap import colour_limit, heat_map, visible


def _response(reward):
    count = len(reward)
    return Response(list("abcdefgh")[:count], reward, [-0.1] * count, [-0.2] * count)


def test_strength_is_linear_in_the_reward_and_saturates():
    heatmap = heat_map(_response([1.0, -0.5, 0.0, 6.0, -9.0]), limit=2.0)
    assert [(token.sign, token.strength) for token in heatmap.tokens] == [
        ("more", 50),
        ("less", 25),
        ("", 0),
        ("more", 100),
        ("less", 100),
    ]
    assert heatmap.total == pytest.approx(-2.5)
    assert heatmap.flagged == 2


def test_rewards_that_are_not_finite_have_no_colour():
    heatmap = heat_map(_response([math.nan, math.inf, -math.inf]), limit=1.0)
    assert [(token.sign, token.strength) for token in heatmap.tokens] == [("", 0)] * 3


def test_the_limit_is_a_round_number_that_one_outlier_does_not_move():
    many = [_response([0.3, -0.4, 0.1, 0.2])] * 50
    assert colour_limit(many) == 0.5
    assert colour_limit([*many, _response([80.0])]) == 0.5
    assert colour_limit([]) == 1.0
    assert colour_limit([_response([0.0, math.nan])]) == 1.0


def test_padding_left_in_is_refused():
    with pytest.raises(InputError, match="2 tokens, 3 reward"):
        heat_map(Response(["a", "b"], [0.1, 0.2, 0.0], [0, 0], [0, 0]), 1.0)


def test_what_cannot_be_seen_is_shown_by_a_sign():
    assert visible("a\nb\t") == "a↵b⇥"
    assert visible("") == "␣"
    assert visible(" ") == " "
