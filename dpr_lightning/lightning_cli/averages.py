"""Check before the first step that the averages of callbacks are in the policy that is saved at the end."""

import logging
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

from dpr_lightning.callbacks import ReferenceCheckpoints
from dpr_lightning.errors import InputError
from dpr_lightning.trainer_attributes import callbacks_of

log = logging.getLogger(__name__)


def check_averages(trainer: Trainer) -> None:
    """Refuse a callback that averages weights after the policy is saved; log which saved policies have an average.

    Args:
        trainer: with its callbacks, which are called in their order.

    Raises:
        InputError: names the callback and the order that works.
    """
    callbacks: list[Any] = callbacks_of(trainer)
    policies = [index for index, callback in enumerate(callbacks) if isinstance(callback, ReferenceCheckpoints)]
    for index, callback in enumerate(callbacks):
        if not policies or not isinstance(callback, (StochasticWeightAveraging, WeightAveraging)):
            continue
        kind = type(callback).__name__
        if index > policies[0]:
            raise InputError(
                f"`trainer.callbacks`: {kind} puts its average into the policy when training ends, and "
                "ReferenceCheckpoints, which is listed before it, would have written `final` without it. List "
                "ReferenceCheckpoints after it; or leave it out and set `ema_decay` of ReferenceCheckpoints, which "
                "writes an average as `ema`."
            )
        if trainer.is_global_zero:
            log.warning(
                "%s: the policy `final` has its average for weights; those written at fractions of the run, as "
                "references, have the weights of their step.",
                kind,
            )
