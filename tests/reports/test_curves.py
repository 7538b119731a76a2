import math
import re

import pytest

from dpr_lightning.reports.content import Panel, Series
from dpr_lightning.reports.curves import BOTTOM, HEIGHT, LEFT, MOST_POINTS, RIGHT, TOP, WIDTH, draw, short, ticks


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-0.283, 0.193), (57.1, 58.4), (1e-5, 3e-5), (0, 12345), (-7, -7), (0, 0), (0.3, 0.3)]
)
def test_ticks_are_round_and_cover_the_values(low, high):
    marks = ticks(low, high, 4)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 9
    step = marks[1] - marks[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - round_number) for round_number in (1, 2, 5, 10)) < 1e-6


def test_points_land_where_the_axes_say():
    plot = draw(Panel("loss", [Series("a", [0, 50, 100], [0.0, 1.0, 0.5])]))
    numbers = [tuple(map(float, pair.split(" "))) for pair in plot.curves[0].path[1:].split("L")]
    top, bottom = TOP, HEIGHT - BOTTOM
    assert numbers == [(LEFT, bottom), ((LEFT + WIDTH - RIGHT) / 2, top), (WIDTH - RIGHT, (top + bottom) / 2)]
    assert [tick.label for tick in plot.horizontal] == ["0", "50", "100"]
    assert "a from 0 at step 0 to 0.5 at step 100" in plot.summary


def test_gaps_break_the_curve_and_lonely_points_are_dots():
    values = [1.0, 2.0, None, 3.0, math.nan, 4.0, math.inf, 5.0, 6.0]
    curve = draw(Panel("x", [Series("a", range(9), values)])).curves[0]
    assert curve.path.count("M") == 2
    assert len(curve.dots) == 2


def test_long_curves_are_thinned_to_means_and_keep_their_ends():
    count = 10_000
    plot = draw(Panel("x", [Series("a", range(count), [float(step % 2) for step in range(count)])]))
    points = plot.hover["series"][0]
    assert len(points) <= MOST_POINTS + 2
    assert points[0] == [0.0, 0.0]
    assert points[-1] == [count - 1.0, 1.0]
    assert all(abs(value - 0.5) < 0.02 for _, value in points[1:-2])
    assert len(re.findall("L", plot.curves[0].path)) == len(points) - 1


def test_levels_are_inside_the_box():
    plot = draw(Panel("x", [Series("a", [0, 1], [0.5, 0.6])], levels={"SFT": 0.1}))
    assert TOP <= plot.levels[0].coordinate <= HEIGHT - BOTTOM
    assert plot.levels[0].label == "SFT 0.1"


def test_nothing_logged_is_no_error():
    plot = draw(Panel("x", [Series("a", [], []), Series("b", [1], [math.nan])]))
    assert [curve.path for curve in plot.curves] == ["", ""]
    assert "no values" in plot.summary


def test_short_numbers():
    assert [short(value) for value in (0.0, -0.25, 12500.0, 0.00004, 58.0)] == ["0", "−0.25", "12.5k", "4e−5", "58"]
