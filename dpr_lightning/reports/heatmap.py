"""Token rewards as colours: a diverging scale around 0, the same for all responses of a page."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dpr_lightning.errors import InputError
from dpr_lightning.reports.content import Response

# Tokens whose reward is below this, in nats, are counted under their response.
FLAGGED = -0.2
# The colour saturates at this quantile of |r̂|, so that one extreme token does not make the rest pale.
SATURATION_QUANTILE = 0.97


@dataclass(frozen=True)
class Token:
    """A coloured token.

    ``text`` for display, with signs for invisible characters; ``breaks`` when a new line follows; ``strength`` in
    [0, 100], per cent of full colour; ``sign`` "more", "less", or "" without a colour. A log-probability that was not
    saved is None.
    """

    text: str
    raw: str
    breaks: bool
    sign: str
    strength: int
    reward: float
    policy_logprob: float | None
    reference_logprob: float | None


@dataclass(frozen=True)
class HeatMap:
    """A response for its template. ``total`` is Σ r̂ in nats, ``flagged`` the number of tokens below −0.2 nats."""

    prompt: str
    label: str
    correct: bool | None
    tokens: list[Token]
    total: float
    flagged: int


def colour_limit(responses: Iterable[Response]) -> float:
    """|r̂| in nats at which the colour is full, rounded to 1, 2 or 5 times a power of ten; 1 when all are 0."""
    magnitudes = sorted(
        abs(value) for response in responses for value in response.reward if math.isfinite(value) and value != 0
    )
    if not magnitudes:
        return 1.0
    quantile = magnitudes[min(len(magnitudes) - 1, int(SATURATION_QUANTILE * len(magnitudes)))]
    power = 10.0 ** math.floor(math.log10(quantile))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= quantile * 0.999)


def heat_map(response: Response, limit: float) -> HeatMap:
    """Colour a response.

    Raises:
        InputError: its lists differ in length.
    """
    lengths = {"tokens": len(response.tokens), "reward": len(response.reward)}
    if response.policy_logprob or response.reference_logprob:
        lengths["policy_logprob"] = len(response.policy_logprob)
        lengths["reference_logprob"] = len(response.reference_logprob)
    if len(set(lengths.values())) > 1:
        raise InputError(
            f"A response has {', '.join(f'{count} {name}' for name, count in lengths.items())}: one entry a token is "
            "needed. Cut padding off before writing a report."
        )
    return HeatMap(
        prompt=response.prompt,
        label=response.label,
        correct=response.correct,
        tokens=_tokens(response, limit),
        total=sum(response.reward),
        flagged=sum(value < FLAGGED for value in response.reward),
    )


def visible(text: str) -> str:
    """A token's text with signs for line breaks and tabs, and an open box for an empty one."""
    return text.replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥") or "␣"


def _tokens(response: Response, limit: float) -> list[Token]:
    def token(text: str, reward: float, policy: float | None, reference: float | None) -> Token:
        finite = math.isfinite(reward)
        return Token(
            text=visible(text),
            raw=text,
            breaks="\n" in text,
            sign=("more" if reward > 0 else "less") if finite and reward else "",
            strength=min(100, round(100 * abs(reward) / limit)) if finite else 0,
            reward=reward,
            policy_logprob=policy,
            reference_logprob=reference,
        )

    unknown = [None] * len(response.tokens)
    columns = (response.policy_logprob or unknown, response.reference_logprob or unknown)
    return [token(*values) for values in zip(response.tokens, response.reward, *columns, strict=True)]
