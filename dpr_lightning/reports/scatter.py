"""Points over two axes, as numbers of an SVG."""

import math
from dataclasses import dataclass

from dpr_lightning.reports.content import Point, Scatter
from dpr_lightning.reports.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Tick, short, ticks


@dataclass(frozen=True)
class Mark:
    """A point as SVG: ``tone`` "right", "wrong" or "", and the text of its tooltip."""

    x: float
    y: float
    tone: str
    words: str


@dataclass(frozen=True)
class ScatterPlot:
    """A scatter for its template; ``diagonal`` is (x1, y1, x2, y2) or None."""

    scatter: Scatter
    marks: list[Mark]
    horizontal: list[Tick]
    vertical: list[Tick]
    diagonal: tuple[float, float, float, float] | None


def draw_scatter(scatter: Scatter) -> ScatterPlot:
    """Scale the finite points to the box of the plot."""
    points = [point for point in scatter.points if math.isfinite(point.x) and math.isfinite(point.y)]
    across, up = _ticks([point.x for point in points]), _ticks([point.y for point in points])

    def x(value: float) -> float:
        return LEFT + (value - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - up[0]) / (up[-1] - up[0]) * (HEIGHT - TOP - BOTTOM)

    low, high = max(across[0], up[0]), min(across[-1], up[-1])
    return ScatterPlot(
        scatter=scatter,
        marks=[Mark(x(point.x), y(point.y), _tone(point), _words(point, scatter)) for point in points],
        horizontal=[Tick(x(value), short(value)) for value in across],
        vertical=[Tick(y(value), short(value)) for value in up],
        diagonal=(x(low), y(low), x(high), y(high)) if scatter.diagonal and low < high else None,
    )


def _ticks(values: list[float]) -> list[float]:
    return ticks(min(values), max(values), 4) if values else [0.0, 1.0]


def _tone(point: Point) -> str:
    return "" if point.correct is None else "right" if point.correct else "wrong"


def _words(point: Point, scatter: Scatter) -> str:
    judged = "" if point.correct is None else ", right" if point.correct else ", wrong"
    return f"{point.name}{judged}\n{scatter.x}: {short(point.x)}\n{scatter.y}: {short(point.y)}"
