"""Comparisons of arms on the same prompts, each with one verdict that is corrected for the number of comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from numpy.typing import ArrayLike

from dpr_lightning.evaluation.statistics import (
    PairedComparison,
    Verdict,
    hierarchical_comparison,
    holm,
    paired_comparison,
    verdict,
)

MEASURES = ("sampled", "greedy")


@dataclass(frozen=True)
class CorrectedComparison(PairedComparison):
    """One of several comparisons of one report, with the verdict that every table, plot, page and file displays.

    ``p_holm`` is ``p_value`` after Holm's correction over all comparisons of the same measure; ``verdict`` follows
    from it and from the interval, which is not corrected: "better" or "worse" need both.
    """

    p_holm: float
    verdict: Verdict


Corrected = dict[str, dict[str, CorrectedComparison]]


def compare_arms(
    scores: Mapping[str, Sequence[Mapping[str, ArrayLike]]], base: str, focus: str | None = None
) -> Corrected:
    """Every arm minus ``base`` and, if there is a ``focus``, ``focus`` minus every other arm, paired by prompt.

    With one seed by :func:`paired_comparison`, with several by :func:`hierarchical_comparison`.

    Args:
        scores: by arm, for each seed, by measure, the scores of the prompts in the order of the file, [P].
        base: the arm that every arm is compared with.
        focus: an arm that is compared with every arm too.

    Returns:
        ``{"arm - other": {measure: comparison}}`` for the measures that both arms have.
    """
    pairs = [(name, base) for name in scores if name != base]
    if focus is not None:
        pairs += [(focus, name) for name in scores if name not in (base, focus)]
    return corrected(
        {
            f"{first} - {second}": {
                measure: _compared([(ours[measure], theirs[measure]) for ours, theirs in seeds])
                for measure in MEASURES
                if all(measure in ours and measure in theirs for ours, theirs in seeds)
            }
            for first, second in pairs
            for seeds in [list(zip(scores[first], scores[second], strict=True))]
        }
    )


def corrected(comparisons: Mapping[str, Mapping[str, PairedComparison]]) -> Corrected:
    """Correct the comparisons of one report, by name and measure, and judge each: those of a measure are one family."""
    table: Corrected = {name: {} for name in comparisons}
    for measure in dict.fromkeys(measure for by_measure in comparisons.values() for measure in by_measure):
        family = {name: by_measure[measure] for name, by_measure in comparisons.items() if measure in by_measure}
        p_values = holm([compared.p_value for compared in family.values()])
        for (name, compared), p_holm in zip(family.items(), map(float, p_values), strict=True):
            judgement = verdict(replace(compared, p_value=p_holm))
            table[name][measure] = CorrectedComparison(**asdict(compared), p_holm=p_holm, verdict=judgement)
    return table


def to_records(table: Corrected) -> dict[str, dict[str, dict[str, Any]]]:
    """The table as plain data, for files and reports."""
    return {
        name: {measure: asdict(compared) for measure, compared in by_measure.items()}
        for name, by_measure in table.items()
    }


def _compared(seeds: Sequence[tuple[ArrayLike, ArrayLike]]) -> PairedComparison:
    return hierarchical_comparison(seeds) if len(seeds) > 1 else paired_comparison(*seeds[0])
