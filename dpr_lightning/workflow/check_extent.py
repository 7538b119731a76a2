"""How much `dpr check` looks at by default."""

from dataclasses import dataclass

from dpr_lightning.errors import counted

PROMPTS, FEWEST_PROMPTS = 100, 20
SAMPLES, FEWEST_SAMPLES = 16, 8
"""Answers to a prompt. With fewer, the preview sees too little of what a reward prefers among them."""
CPU_BUDGET = 8e12
"""Weights times tokens of answers that are sampled by default without a GPU: about four minutes of two CPU cores."""


@dataclass(frozen=True)
class CheckSize:
    """What a check looks at.

    Attributes:
        prompts: held-out rows.
        samples: answers to each.
        left_out: shares of SFT of the references that are not audited.
        reduced: whether there would be more on a GPU.
    """

    prompts: int
    samples: int
    left_out: tuple[str, ...] = ()
    reduced: bool = False

    def describe(self, rows: int) -> str:
        """What is looked at and what is not, in a sentence or two; empty where nothing is left out.

        Args:
            rows: held-out rows that there are.
        """
        if not self.reduced:
            return ""
        text = (
            f"Without a GPU the check looks at {self.prompts} of {counted(rows, 'held-out row')} with {self.samples} "
            "answers to each"
        )
        if self.left_out:
            text += f", and not at the reference{'s' * (len(self.left_out) > 1)} at {', '.join(self.left_out)}"
        return f"{text}. --prompts {PROMPTS} --samples {SAMPLES} looks at as much as on a GPU."


def check_size(
    rows: int,
    parameters: int,
    max_new_tokens: int,
    others: tuple[str, ...],
    *,
    prompts: int | None = None,
    samples: int | None = None,
    on_gpu: bool,
) -> CheckSize:
    """The size of a check: whole on a GPU, and within :data:`CPU_BUDGET` without one, unless the user names it.

    Args:
        rows: held-out rows that there are.
        parameters: weights of the policy.
        max_new_tokens: length limit of an answer.
        others: shares of SFT of the references that are audited where there is time.
        prompts: of the user; None: by default.
        samples: of the user; None: by default.
        on_gpu: whether a GPU computes.
    """
    most = min(rows, prompts or PROMPTS)
    whole = CheckSize(most, samples or SAMPLES)
    affordable = CPU_BUDGET / (parameters * max_new_tokens)
    if on_gpu or prompts is not None or whole.prompts * whole.samples <= affordable:
        return whole
    each = samples or min(SAMPLES, max(FEWEST_SAMPLES, int(affordable / most)))
    count = min(most, max(FEWEST_PROMPTS, int(affordable / each)))
    return CheckSize(count, each, others, reduced=True)
