"""One number for a response, for trainers that take no reward of a token."""

from collections.abc import Sequence
from typing import Literal, get_args

from dpr_lightning.errors import InputError

Reduction = Literal["mean", "sum"]
"""How the rewards of a response's tokens become one number.

``mean``: nats per token. The length of the response does not count.
``sum``: nats per response, the undiscounted return. It has a length bias: where most token rewards are negative, as in
    the recommended form, every further token costs, and policies that are trained on it learn to write less; where
    they are positive, as in ``log_ratio`` on the policy's own samples, they learn to write more.
"""


def check_reduction(reduction: str) -> None:
    """Called where an option names it.

    Raises:
        InputError: there is no such reduction.
    """
    if reduction not in get_args(Reduction):
        raise InputError(f"`reduction` is one of {', '.join(get_args(Reduction))}; found {reduction!r}.")


def response_reward(rewards: Sequence[float], reduction: Reduction) -> float:
    """The reward of a response in nats, a token or in all; 0 of one without tokens."""
    if reduction == "mean":
        return sum(rewards) / max(1, len(rewards))
    return float(sum(rewards))
