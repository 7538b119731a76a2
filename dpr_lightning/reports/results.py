"""Rows and plots of a run's results: arms, paired differences with their intervals, and the preview."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpr_lightning.reports.content import Sample
from dpr_lightning.reports.curves import ticks

# Number of policies whose answers a page displays until a reader selects more.
DISPLAYED_POLICIES = 4

# Measures of an arm in the order of the table: key, heading, decimals, meaning.
MEASURES: tuple[tuple[str, str, int, str], ...] = (
    ("greedy", "greedy", 3, "share of prompts answered right with the most probable token each time"),
    ("sampled", "sampled", 3, "share answered right when tokens are sampled at temperature 1"),
    ("picked", "picked", 3, "share of prompts whose picked answer is right"),
    ("auc", "AUC", 3, "chance that a right answer to a prompt ranks above a wrong one"),
    ("length", "length", 1, "mean tokens of a response"),
    ("reverse_kl", "KL to SFT", 3, "KL(π‖π_SFT) of a response, in nats"),
    ("teraflops", "TFLOPs", 3, "10¹² floating-point operations of training after SFT"),
)
Entry = Mapping[str, Any]
Paired = Mapping[str, Mapping[str, Entry]]
# How a table or plot marks the verdict on a comparison; without colour.
MARKS = {"better": "▲", "no detectable difference": "≈", "worse": "▼"}
RULE = (
    "A verdict takes p < .05 after Holm's correction over the comparisons of a measure, and an interval without 0; "
    "intervals are not corrected."
)
HEADINGS = {key: heading for key, heading, _, _ in MEASURES}


@dataclass(frozen=True)
class Bar:
    """A difference on the axis of a forest plot; ``center``, ``start`` and ``width`` in per cent of the axis."""

    name: str
    difference: float
    low: float
    high: float
    center: float
    start: float
    width: float
    p_holm: str
    verdict: str
    sign: str


@dataclass(frozen=True)
class Forest:
    """All comparisons of one measure on one axis; ``marks`` are (position in per cent, label)."""

    measure: str
    zero: float
    marks: list[tuple[float, str]]
    bars: list[Bar]


def measures_of(arms: Mapping[str, Mapping[str, float | None]]) -> list[tuple[str, str, int, str]]:
    """The measures that at least one arm has."""
    return [measure for measure in MEASURES if any(measure[0] in arm for arm in arms.values())]


def forests(paired: Paired) -> list[Forest]:
    """A forest plot for each measure of the comparisons; accuracies share one axis."""
    measures = list(dict.fromkeys(measure for by_measure in paired.values() for measure in by_measure))
    rank = [key for key, *_ in MEASURES]
    measures.sort(key=lambda measure: (measure != "sampled", rank.index(measure) if measure in rank else len(rank)))
    accuracy = [paired[name][key] for name in paired for key in ("sampled", "greedy") if key in paired[name]]
    plots = []
    for measure in measures:
        comparisons = {name: by_measure[measure] for name, by_measure in paired.items() if measure in by_measure}
        plots.append(
            _forest(measure, comparisons, accuracy if measure in ("sampled", "greedy") else list(comparisons.values()))
        )
    return plots


@dataclass(frozen=True)
class PreviewCell:
    """One reward at one β: ``tone`` "better", "worse" or "" against SFT; ``reliable``: within the samples' reach."""

    score: float | None
    length: float
    tone: str
    reliable: bool
    best: bool
    words: str


@dataclass(frozen=True)
class PreviewRow:
    """One reward of the preview."""

    name: str
    control: bool
    auc: float | None
    best_of_n: float | None
    cells: list[PreviewCell]


def preview_rows(preview: Mapping[str, Any]) -> tuple[list[float], list[PreviewRow]]:
    """The β of the columns, and a row for each reward, controls last."""
    rewards: Sequence[Mapping[str, Any]] = sorted(preview["rewards"], key=lambda reward: bool(reward["control"]))
    betas = [float(point["beta"]) for point in rewards[0]["points"]] if rewards else []
    best = {tuple(preview[key]) for key in ("best", "best_control") if preview.get(key)}
    return betas, [
        PreviewRow(
            name=str(reward["name"]),
            control=bool(reward["control"]),
            auc=reward["auc"],
            best_of_n=reward["best_of_n"],
            cells=[_cell(point, preview, (reward["name"], point["beta"]) in best) for point in reward["points"]],
        )
        for reward in rewards
    ]


def policies_of(samples: Sequence[Sample]) -> list[tuple[str, bool]]:
    """Names of the policies, and whether a page displays their answers at first."""
    names = dict.fromkeys(answer.policy for sample in samples for answer in sample.answers)
    return [(name, index < DISPLAYED_POLICIES) for index, name in enumerate(names)]


def number(value: float | None, decimals: int = 3, signed: bool = False) -> str:
    """A number for a table, with a true minus sign; a dash for a missing one."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    if float(text) == 0.0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def p_value(value: float) -> str:
    """A p-value for a table: three decimals, or < .001."""
    return "< .001" if value < 0.001 else number(value, 3).removeprefix("0")


def arm_name(name: str) -> str:
    """An arm's name for readers: SFT low temperature for ``sft_low_temperature``."""
    known = {name: name.upper() for name in ("sft", "dft", "dpr", "gsil", "spin")}
    return " ".join(known.get(word, word) for word in name.replace("_", " ").split(" "))


def _forest(measure: str, comparisons: Mapping[str, Entry], on_axis: Sequence[Entry]) -> Forest:
    finite = [value for entry in on_axis for value in (entry["low"], entry["high"]) if math.isfinite(value)]
    marks = ticks(min([0.0, *finite]), max([0.0, *finite]), 5)
    low, high = marks[0], marks[-1]

    def position(value: float) -> float:
        return round(min(100.0, max(0.0, 100.0 * (value - low) / (high - low))), 2)

    bars = []
    for name, entry in comparisons.items():
        start = position(entry["low"])
        bars.append(
            Bar(
                name=" − ".join(arm_name(part) for part in name.split(" - ")),
                difference=entry["difference"],
                low=entry["low"],
                high=entry["high"],
                center=position(entry["difference"]),
                start=start,
                width=round(position(entry["high"]) - start, 2),
                p_holm=p_value(entry["p_holm"]),
                verdict=entry["verdict"],
                sign=MARKS[entry["verdict"]],
            )
        )
    labels = [(position(mark), f"{mark:+g}".replace("-", "−") if mark else "0") for mark in marks]
    return Forest(HEADINGS.get(measure, measure.replace("_", " ")), position(0.0), labels, bars)


def _cell(point: Mapping[str, Any], preview: Mapping[str, Any], best: bool) -> PreviewCell:
    difference = point["difference"]
    tone = ""
    words = f"{point['effective_samples']:.1f} of {preview['samples']} samples carry the weight"
    if difference is not None:
        tone = {"better": "better", "worse": "worse"}.get(point["verdict"], "")
        words = (
            f"difference from SFT {number(difference['difference'], 3, True)}, interval "
            f"{number(difference['low'], 3, True)} to {number(difference['high'], 3, True)}; {words}"
        )
    words += f"; expected length {number(point['length'], 1)} tokens"
    return PreviewCell(point["score"], point["length"], tone, bool(point["reliable"]), best, words)
