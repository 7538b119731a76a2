"""Curves as numbers of SVG paths, so that a page needs no charting library; templates write the SVG."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpr_lightning.reports.content import Panel, Series

WIDTH, HEIGHT = 360.0, 180.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 8.0, 22.0
# More points than pixels only enlarge the page; a longer curve has means of neighbouring steps.
MOST_POINTS = 240
MARGIN = 0.05
"""Share of the values' range that a vertical axis has above and below it."""

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A tick: its coordinate on an axis, in units of the SVG, and its label."""

    coordinate: float
    label: str


@dataclass(frozen=True)
class Curve:
    """A series as SVG: ``path`` is path data; ``dots`` are points without a neighbour, which a path does not draw."""

    name: str
    path: str
    dots: Points


@dataclass(frozen=True)
class Level:
    """A horizontal line; ``coordinate`` is its height in units of the SVG."""

    name: str
    coordinate: float
    label: str


@dataclass(frozen=True)
class Drawing:
    """A panel for its template; ``hover`` has the values that the page's script displays at a step."""

    title: str
    unit: str
    curves: list[Curve]
    levels: list[Level]
    horizontal: list[Tick]
    vertical: list[Tick]
    hover: dict[str, Any]
    summary: str


def draw(panel: Panel) -> Drawing:
    """Scale a panel to its box and thin long curves."""
    runs = [_runs(series) for series in panel.series]
    points = [point for series in runs for run in series for point in run]
    steps = [step for step, _ in points]
    values = [value for _, value in points] + [value for value in panel.levels.values() if math.isfinite(value)]
    x_low, x_high = (min(steps), max(steps)) if steps else (0.0, 1.0)
    x_high = x_high if x_high > x_low else x_low + 1.0
    marks = ticks(min(values), max(values), 4) if values else [0.0, 1.0]
    y_low, y_high = _fitted(values, marks)

    def x(step: float) -> float:
        return LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    curves = [
        Curve(
            series.name,
            " ".join(_path([(x(step), y(value)) for step, value in run]) for run in series_runs if len(run) > 1),
            [(x(run[0][0]), y(run[0][1])) for run in series_runs if len(run) == 1],
        )
        for series, series_runs in zip(panel.series, runs, strict=True)
    ]
    return Drawing(
        title=panel.title,
        unit=panel.unit,
        curves=curves,
        levels=[Level(name, y(value), f"{name} {short(value)}") for name, value in panel.levels.items()],
        horizontal=[Tick(x(step), short(step)) for step in ticks(x_low, x_high, 4) if x_low <= step <= x_high],
        vertical=[Tick(y(value), short(value)) for value in marks if y_low <= value <= y_high],
        hover={
            "over": panel.over,
            "x": [x_low, x_high],
            "series": [
                [[round(step, 3), float(f"{value:.5g}")] for run in series_runs for step, value in run]
                for series_runs in runs
            ],
        },
        summary="; ".join(
            _in_words(series, series_runs, panel.over) for series, series_runs in zip(panel.series, runs, strict=True)
        ),
    )


def _fitted(values: Sequence[float], marks: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis: those of the values with a margin, and no further than the first and the last tick."""
    low, high = (min(values), max(values)) if values else (marks[0], marks[-1])
    margin = MARGIN * (high - low)
    if not margin:
        return marks[0], marks[-1]
    return max(marks[0], low - margin), min(marks[-1], high + margin)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers that cover [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        reach = abs(low) or 1.0
        low, high = low - reach / 2, high + reach / 2
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def short(value: float) -> str:
    """A number for an axis: few digits, true minus sign, k for thousands."""
    if abs(value) >= 10_000:
        text = f"{value / 1000:.4g}k"
    elif value != 0 and abs(value) < 1e-3:
        text = f"{value:.0e}".replace("e-0", "e-")
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def _runs(series: Series) -> list[Points]:
    """Stretches of finite points, thinned."""
    pairs = list(zip(series.steps, series.values, strict=True))
    runs = [
        [(float(step), float(value)) for step, value in group if value is not None]
        for finite, group in itertools.groupby(pairs, key=lambda pair: pair[1] is not None and math.isfinite(pair[1]))
        if finite
    ]
    width = math.ceil(sum(map(len, runs)) / MOST_POINTS)
    return [_thinned(run, width) for run in runs]


def _thinned(run: Points, width: int) -> Points:
    """Replace ``width`` neighbours by their mean, without a change of the first and the last point."""
    if width <= 1 or len(run) <= 3:
        return run
    inner = run[1:-1]
    groups = [inner[start : start + width] for start in range(0, len(inner), width)]
    means = [
        (sum(step for step, _ in group) / len(group), sum(value for _, value in group) / len(group)) for group in groups
    ]
    return [run[0], *means, run[-1]]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _in_words(series: Series, runs: Sequence[Points], over: str) -> str:
    """A text for screen readers: where the curve begins and ends."""
    points = [point for run in runs for point in run]
    if not points:
        return f"{series.name}: no values"
    (first_step, first), (last_step, last) = points[0], points[-1]
    return (
        f"{series.name} from {short(first)} at {over} {short(first_step)} to {short(last)} at {over} {short(last_step)}"
    )
