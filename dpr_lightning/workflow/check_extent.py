"""How much `dpr check` looks at by default."""

from dataclasses import dataclass

from dpr_lightning.errors import counted

PROMPTS, FEWEST_PROMPTS = 100, 20
SAMPLES, FEWEST_SAMPLES = 16, 8
"""Answers to a prompt. With fewer, the preview sees too little of what a reward prefers among them."""
CPU_BUDGET = 1.1e13
"""Weights times tokens that go through a model by default without a GPU: about four minutes of two CPU cores.

Measured with SmolLM2-135M on 20 rows of GSM8K: 435 s of CPU time.
"""
AUDIT_SAMPLES = 4
"""Answers to a prompt that the audit uses; its corrupted demonstrations say more."""


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
    lengths: tuple[int, int],
    further: tuple[str, ...],
    *,
    prompts: int | None = None,
    samples: int | None = None,
    on_gpu: bool,
) -> CheckSize:
    """The size of a check: whole on a GPU, and within :data:`CPU_BUDGET` without one, unless the user names it.

    Without a GPU further references are left out first, then answers, then prompts.

    Args:
        rows: held-out rows that there are.
        parameters: weights of the policy.
        lengths: tokens of the longest demonstration, and of the longest answer that is sampled.
        further: shares of SFT of the references that are audited in addition to the one that is previewed.
        prompts: of the user; None: by default.
        samples: of the user; None: by default.
        on_gpu: whether a GPU computes.
    """
    whole = CheckSize(min(rows, prompts or PROMPTS), samples or SAMPLES)
    tokens = CPU_BUDGET / parameters
    if on_gpu or prompts is not None or _tokens(whole, lengths, len(further)) <= tokens:
        return whole
    each, count = whole.samples, whole.prompts
    while samples is None and each > FEWEST_SAMPLES and _tokens(CheckSize(count, each), lengths) > tokens:
        each -= 1
    while count > min(rows, FEWEST_PROMPTS) and _tokens(CheckSize(count, each), lengths) > tokens:
        count -= 1
    return CheckSize(count, each, further, reduced=True)


def _tokens(size: CheckSize, lengths: tuple[int, int], further: int = 0) -> int:
    """Tokens that go through a model at most, prompts aside.

    An answer is sampled, and scored by two models; so are a demonstration and its corrupted twin, for each reference.
    """
    demonstration, answer = lengths
    audited = (1 + further) * 4 * demonstration + further * 2 * AUDIT_SAMPLES * answer
    return size.prompts * (3 * size.samples * answer + audited)
