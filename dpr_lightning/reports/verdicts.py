"""The verdicts of comparisons in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

from dpr_lightning.reports.results import MARKS, Paired, arm_name, number

BETTER = "better"
NO_GAIN = "no gain"
"""An arm that is better than an unfinished SFT, by no more than SFT gains from more steps."""
GROUPS = tuple(group for verdict in MARKS for group in ((verdict, NO_GAIN) if verdict == BETTER else (verdict,)))


@dataclass(frozen=True)
class LongerSft:
    """What more steps give to SFT in one measure, where that is detectably better.

    Attributes:
        name: of the arm with more steps.
        gain: over ``sft``, a difference of scores.
        sft: the arm that all arms are compared with.
        other_gains: of the other arms over ``sft``.
    """

    name: str
    gain: float
    sft: str
    other_gains: dict[str, float]

    @property
    def behind(self) -> list[str]:
        """The arms that gain no more."""
        return [name for name, gain in self.other_gains.items() if gain <= self.gain]

    def sentence(self, measure: str) -> str:
        """The gain in percentage points, beside that of the best of the other arms where none exceeds it."""
        gain, ranked = _points(self.gain), sorted(self.other_gains, key=lambda name: -self.other_gains[name])
        arm = arm_name(self.name)
        if ranked and self.other_gains[ranked[0]] < self.gain:
            best = f"{arm_name(ranked[0])} {_points(self.other_gains[ranked[0]])}"
            words = f"Finishing SFT gives more than any arm: {gain} points {measure} ({arm}), the best arm {best}"
        else:
            words = f"Finishing SFT gives {gain} points {measure} by itself ({arm})"
        return f"{words}. Start from a finished SFT."


def verdict_lines(paired: Paired, fixed: str, longer_sft: Sequence[str] = ()) -> list[str]:
    """A line for each measure and verdict with its arms, largest difference first.

    Where SFT with more steps is better than SFT, the lines of the measure begin with that, and arms that gain no more
    are not listed as better than SFT.

    Args:
        paired: by ``"a - b"`` and measure, records of comparisons with ``difference`` and ``verdict``.
        fixed: the arm that every line compares with: the b of all comparisons ("better than SFT: DPR …") or their a
            ("DPR better than: SFT …"); comparisons without it are left out.
        longer_sft: arms that are SFT with more steps; each is compared with SFT.
    """
    arms = {name: tuple(name.split(" - ")) for name in paired}
    baseline = any(second == fixed for _, second in arms.values())
    comparisons = {
        (first if baseline else second): paired[name]
        for name, (first, second) in arms.items()
        if fixed == (second if baseline else first)
    }
    lines = []
    for measure in dict.fromkeys(measure for by_measure in comparisons.values() for measure in by_measure):
        entries = {name: by_measure[measure] for name, by_measure in comparisons.items() if measure in by_measure}
        ranked = sorted(entries, key=lambda name: -float(entries[name]["difference"]))
        groups = {name: str(entry["verdict"]) for name, entry in entries.items()}
        if (longer := longer_sft_gain(paired, measure, longer_sft)) is not None:
            lines.append(longer.sentence(measure))
            refused = longer.behind if baseline else [longer.sft] if fixed in longer.behind else []
            groups |= {name: NO_GAIN for name in refused if groups.get(name) == BETTER}
        for group in GROUPS:
            names = [
                f"{arm_name(name)} ({number(entries[name]['difference'], 3, signed=True)})"
                for name in ranked
                if groups[name] == group
            ]
            if names:
                lines.append(f"{measure.capitalize()} answers, {_words(group, fixed, baseline)}: {', '.join(names)}.")
    return lines


def longer_sft_gain(paired: Paired, measure: str, longer_sft: Sequence[str]) -> LongerSft | None:
    """The gain of SFT with more steps; None where there is no such arm, or none is detectably better.

    Args:
        paired: as for :func:`verdict_lines`.
        measure: of the comparisons.
        longer_sft: arms that are SFT with more steps; the best of them counts.
    """
    entries = {
        tuple(name.split(" - ")): by_measure[measure] for name, by_measure in paired.items() if measure in by_measure
    }
    better = [pair for pair, entry in entries.items() if pair[0] in longer_sft and entry["verdict"] == BETTER]
    if not better:
        return None
    best, sft = max(better, key=lambda pair: float(entries[pair]["difference"]))
    gains = {first: float(entry["difference"]) for (first, second), entry in entries.items() if second == sft}
    other_gains = {name: gain for name, gain in gains.items() if name not in longer_sft}
    return LongerSft(best, gains[best], sft, other_gains)


def _points(difference: float) -> str:
    return number(100.0 * difference, 1, signed=True)


def _words(group: str, fixed: str, baseline: bool) -> str:
    """The beginning of a line of :func:`verdict_lines`, before the names."""
    if group == NO_GAIN:
        return "no gain beyond a finished SFT" if baseline else f"{arm_name(fixed)} no gain beyond a finished SFT over"
    if group in ("better", "worse"):
        return f"{group} than {arm_name(fixed)}" if baseline else f"{arm_name(fixed)} {group} than"
    return group if baseline else f"{group} between {arm_name(fixed)} and"
