"""Is supervised fine-tuning finished? From the validations of a run, and from answers that it evaluated."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["finished", "unfinished", "risen", "level", "unknown"]
Points = Sequence[tuple[float, float]]
QUARTER, HALF = 0.75, 0.5
"""Shares of a run after which changes are looked at: the later, and the one before a learning rate has decayed."""
LEAST_CHANGE = 0.01
"""Change of the validation loss in the last quarter, relative to its value, that counts as one."""
LEAST_FALL_OF_HALF = 0.1
"""Fall in the last half, which counts where the learning rate decays; the decay alone lowers the loss by less."""
LEAST_VALIDATIONS = 3
NEARLY_ALL = 0.99
"""Share of right answers from which more steps can add next to nothing, whatever the loss does."""
STANDARD_ERRORS = 2.0
"""Of the difference of two shares of right answers, for a difference that counts as one."""


@dataclass(frozen=True)
class FinishedSft:
    """What the validations of a run say of more steps.

    Attributes:
        state: ``finished``: nearly all answers are right; ``unfinished``: the loss still falls, or right answers still
            rise; ``risen``: the loss was lower before; ``level``: neither, which does not prove that more steps would
            change nothing; ``unknown``: too few validations.
        reason: the same in one to three sentences, with numbers.
    """

    state: State
    reason: str

    def to_dict(self) -> dict[str, str]:
        """Plain data, for the record of a run."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "FinishedSft":
        """From the record of a run."""
        return cls(record["state"], record["reason"])


@dataclass(frozen=True)
class RunLength:
    """How long a run was.

    Attributes:
        steps: of the optimizer.
        epochs: passes over the demonstrations; None: not known.
        decays: whether the learning rate falls towards the end.
        doubled: the options that double it, with their values.
        validated_often: the options with which it is validated four times or more.
    """

    steps: int
    epochs: float | None
    decays: bool
    doubled: str
    validated_often: str


@dataclass(frozen=True)
class EndChange:
    """A value at the end of a run, and an earlier one to compare it with, measured at a ``share`` of the run."""

    before: float
    share: float
    end: float

    @property
    def relative(self) -> float:
        """The change as a share of the earlier value."""
        return self.end / self.before - 1.0 if self.before > 0 else 0.0

    @classmethod
    def since(
        cls, share: float, points: Points, steps: int, best: Callable[..., tuple[float, float]]
    ) -> "EndChange | None":
        """The end, and the best value after the first step and up to a share of the run; None: too few points.

        Args:
            share: of the run.
            points: (optimizer step, value), in order.
            steps: of the run.
            best: ``min`` or ``max``.
        """
        after = [point for point in points if point[0] > 0]
        if len(after) < 2:
            return None
        early = [point for point in after[:-1] if point[0] <= share * steps] or after[:1]
        step, before = best(early, key=lambda point: point[1])
        return cls(before, step / steps, after[-1][1])


def judge_finished(loss: Points, length: RunLength, answers: Points = (), prompts: int | None = None) -> FinishedSft:
    """Compare the end of a run with the best of its first three quarters, and of its first half if the rate decays.

    Args:
        loss: (optimizer step, validation loss), in order; the first before the first step.
        length: of the run.
        answers: (optimizer step, share of answers that are right), in order.
        prompts: number of these answers; None: not known, and then they are not judged.
    """
    finite = [(step, value) for step, value in loss if math.isfinite(value)]
    late = EndChange.since(QUARTER, finite, length.steps, min)
    half = EndChange.since(HALF, finite, length.steps, min) if length.decays else None
    if late is None or len(finite) < LEAST_VALIDATIONS:
        times = ("never", "once", "twice")[min(len(finite), 2)]
        return FinishedSft(
            "unknown",
            f"Whether SFT is finished is unknown: it was validated {times}, and that takes three "
            f"validations: {length.validated_often}.",
        )
    step, lowest = min(finite, key=lambda point: point[1])
    state, reason = _judge_loss(late, half, EndChange(lowest, step / length.steps, late.end), length)
    answered = EndChange.since(HALF if length.decays else QUARTER, answers, length.steps, max) if prompts else None
    if answered is not None and prompts is not None:
        if answered.end >= NEARLY_ALL:
            words = f"{answered.end:.1%} of {prompts} answers are right: more steps could add next to nothing."
            return FinishedSft("finished", f"{reason} {words}")
        rises = answered.end - answered.before > STANDARD_ERRORS * _standard_error(answered, prompts)
        state = "unfinished" if rises else state
        reason += _words_on_answers(answered, prompts, rises)
    if state == "unfinished":
        reason += f" SFT is not finished. Twice the steps, in a folder of their own: {length.doubled}."
    elif state == "level" and length.decays:
        reason += (
            " As the learning rate decays, any run is level at its end: whether SFT is finished, twice the steps tell, "
            f"in a folder of their own: {length.doubled}."
        )
    return FinishedSft(state, reason)


def _judge_loss(
    late: EndChange, half: EndChange | None, since_lowest: EndChange, length: RunLength
) -> tuple[State, str]:
    """What the loss says, from its changes in the last quarter and half, and that since it was lowest."""
    fall, rise = -late.relative, since_lowest.relative
    fall_of_half = 0.0 if half is None or -half.relative < LEAST_FALL_OF_HALF else -half.relative
    if rise >= max(LEAST_CHANGE, fall, fall_of_half):
        when = f"at {since_lowest.share:.0%} of the run" if since_lowest.share > 0 else "before the first step"
        return "risen", (
            f"Validation loss was lowest {when} and has risen by {rise:.0%} since {_values(since_lowest, length)}: the "
            "run overfits. `run.best: true` saves the policy with the lowest. Answers may improve all the same."
        )
    since = f"since {late.share:.0%} of the run {_values(late, length)}"
    if fall >= LEAST_CHANGE:
        return "unfinished", f"Validation loss still falls, by {fall:.0%} {since}."
    if half is not None and fall_of_half:
        return "unfinished", (
            f"Validation loss fell by {fall_of_half:.0%} since {half.share:.0%} of the run {_values(half, length)}, "
            "until the learning rate had decayed."
        )
    return "level", f"Validation loss has changed by less than {LEAST_CHANGE:.0%} {since}."


def _values(change: EndChange, length: RunLength) -> str:
    epochs = "" if length.epochs is None else f"; epochs: {length.epochs:.3g}"
    return f"({change.before:.4g} to {change.end:.4g}{epochs})"


def _words_on_answers(change: EndChange, prompts: int, rises: bool) -> str:
    """A sentence on right answers, after the one on the loss."""
    words = "rises" if rises else "does not rise detectably"
    return (
        f" The share of right answers {words}: {change.before:.1%} at {change.share:.0%}, {change.end:.1%} at the end "
        f"({prompts} prompts)."
    )


def _standard_error(change: EndChange, prompts: int) -> float:
    """Of the difference of two shares, as if they were of different prompts, which is never too small."""
    return math.sqrt(sum(share * (1.0 - share) for share in (change.before, change.end)) / prompts)
