"""A preview in plain words: may the optimum of this reward be worth the training?"""

from dpr_lightning.evaluation.preview_results import Preview, PreviewPoint, RewardPreview
from dpr_lightning.evaluation.statistics import verdict


def describe(result: Preview, reward: str, beta: float) -> str:
    """The verdict on one reward and β in plain words, a sentence or two a line.

    Raises:
        InputError: the preview does not include this reward or β.
    """
    selected = result.reward(reward)
    point = selected.at(beta)
    change = point.length / result.length - 1 if result.length else 0.0
    percent = f"{100 * change:+.0f}%".replace("-0%", "+0%").replace("-", "−")
    lines = [_optimum_sentence(result, selected, point)]
    lines.append(f"Its expected length is {point.length:.1f} tokens against {result.length:.1f} ({percent}).")
    if selected.auc is not None:
        lines.append(
            f"It ranks a right response above a wrong one to the same prompt in {selected.auc:.1%} of pairs (chance: "
            f"50%); the best of {result.samples} samples by it score {selected.best_of_n:.3f}."
        )
    if result.score is not None:
        lines.append(_best_sentence(result))
    return "\n".join(lines)


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
            f"{way}: {gap}. Raise β, or draw more samples."
        )
    words = {
        "worse": "is WORSE than SFT: reinforcement learning that succeeds would lose accuracy",
        "better": "is better than SFT",
        "no detectable difference": "shows no detectable difference from SFT",
    }[point.verdict or "no detectable difference"]
    return f"{subject} {words} — {gap}; {reach}."


def _best_sentence(result: Preview) -> str:
    """A sentence on which reward and β look best, and whether they beat the sharpening of π_SFT."""
    if result.best is None:
        return "No reward and β tried is within the reach of these samples: raise β, or draw more."
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
