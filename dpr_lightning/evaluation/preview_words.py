"""A preview in plain words: may the optimum of this reward be worth the training?"""

from dpr_lightning.evaluation.preview_results import LEAST_EFFECTIVE_SAMPLES, Preview, PreviewPoint, RewardPreview
from dpr_lightning.evaluation.statistics import verdict

NOTED_CUTS, MANY_CUTS = 0.05, 0.2
"""Shares of cut samples: from the first on they are mentioned, from the second on longer ones are the first remedy."""


def describe(result: Preview, reward: str, beta: float) -> str:
    """The verdict on one reward and β in plain words, a sentence or two a line.

    Raises:
        InputError: the preview does not include this reward or β.
    """
    selected = result.reward(reward)
    point = selected.at(beta)
    reason = nothing_to_rank(result)
    if reason is not None:
        return reason
    change = point.length / result.length - 1 if result.length else 0.0
    percent = f"{100 * change:+.0f}%".replace("-0%", "+0%").replace("-", "−")
    lines = [_optimum_sentence(result, selected, point)]
    if result.cut is not None and result.cut >= NOTED_CUTS:
        lines.append(f"{_cut(result.cut)}, and hardly ever count as right: raise it, or train for shorter answers.")
    lines.append(f"Its expected length is {point.length:.1f} tokens against {result.length:.1f} ({percent}).")
    if selected.auc is not None:
        lines.append(
            f"It ranks a right response above a wrong one to the same prompt in {selected.auc:.1%} of pairs (chance: "
            f"50%); the best of {result.samples} samples by it score {selected.best_of_n:.3f}."
        )
    if result.score is not None:
        lines.append(_best_sentence(result))
    return "\n".join(lines)


def nothing_to_rank(result: Preview) -> str | None:
    """Why no reward can be ranked by these samples, and what to do; None where one can be, and without a verifier."""
    if result.varies is not False or result.score is None:
        return None
    mean, count = result.score.mean, result.prompts * result.samples
    if mean == 0:
        cut = f" {_cut(result.cut)}." if result.cut else ""
        first = (
            "Raise `max_new_tokens` first. Else"
            if (result.cut or 0.0) >= MANY_CUTS
            else "See with `dpr evaluate` whether the answers have the form that the verifier reads. If they do,"
        )
        return (
            f"No sample was right: nothing can be ranked ({count:,} samples of {result.prompts:,} prompts).{cut} "
            f"{first} train SFT for longer, or take easier prompts."
        )
    if mean == 1:
        return (
            f"Every sample was right: nothing can be ranked ({count:,} samples of {result.prompts:,} prompts), and "
            "nothing is left to learn from them. Take harder prompts."
        )
    return (
        f"The samples of each prompt score the same ({mean:.3f} on average): nothing can be ranked, since a reward "
        "ranks answers to one prompt. Draw more (`samples`), or take prompts of which π_SFT answers some."
    )


def _cut(share: float) -> str:
    return f"{share:.0%} of the samples were cut at `max_new_tokens`"


def _optimum_sentence(result: Preview, selected: RewardPreview, point: PreviewPoint) -> str:
    """A sentence that calls the optimum better, worse, undecided, or out of the samples' reach."""
    subject = f"The optimum of {selected.name} at β={point.beta:g}"
    reach = f"{point.effective_samples:.1f} of {result.samples} samples a prompt carry its weight"
    if point.difference is None or result.score is None:
        return f"{subject}: without a verifier only its length can be estimated ({reach})."
    gap = (
        f"{point.score:.3f} against {result.score.mean:.3f} for SFT's own samples "
        f"(difference {_signed(point.difference.difference)}, "
        f"interval {_signed(point.difference.low)} to {_signed(point.difference.high)})"
    )
    if not point.reliable:
        way = {"worse": "leads down", "better": "leads up"}.get(point.verdict or "", "leads neither up nor down")
        return (
            f"{subject} cannot be estimated from these samples: only {reach}. As far as they reach, the way there "
            f"{way}: {gap}. {_further(result)}."
        )
    words = {
        "worse": "is WORSE than SFT: reinforcement learning that succeeds would lose accuracy",
        "better": "is better than SFT",
        "no detectable difference": "shows no detectable difference from SFT",
    }[point.verdict or "no detectable difference"]
    return f"{subject} {words} — {gap}; {reach}."


def _further(result: Preview) -> str:
    """How an optimum comes into the samples' reach: so few samples carry too little weight at every β."""
    return "Draw more samples" if result.samples < 2 * LEAST_EFFECTIVE_SAMPLES else "Raise β, or draw more samples"


def _best_sentence(result: Preview) -> str:
    """A sentence on which reward and β look best, and whether they beat the sharpening of π_SFT."""
    if result.best is None:
        return f"No reward and β tried is within the reach of these samples. {_further(result)}."
    name, beta = result.best
    point = result.reward(name).at(beta)
    text = f"Of the rewards and β tried {name} at β={beta:g} looks best ({point.score:.3f}"
    if point.verdict == "worse":
        return "Nothing tried looks better than SFT within the reach of these samples."
    if point.verdict != "better":
        text += ", though with no detectable difference from SFT"
    if result.best_control is None or result.best_against_control is None:
        return f"{text})."
    control_name, control_beta = result.best_control
    control = result.reward(control_name).at(control_beta)
    against = {"better": "above", "worse": "BELOW"}.get(verdict(result.best_against_control), "not told apart from")
    return (
        f"{text}), {against} the best control, {control_name} at β={control_beta:g} ({control.score:.3f}; difference "
        f"{_signed(result.best_against_control.low)} to {_signed(result.best_against_control.high)})."
    )


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−") if round(value, 3) else "0.000"
