"""What a PolicyModule calls of a strategy, beside what every strategy of Lightning has."""

from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch.strategies import Strategy
from torch import nn

from dpr_lightning.engine import is_sharded
from dpr_lightning.errors import InputError


class PolicyStrategy:
    """Base of strategies that hold a policy in shards; the defaults are those of a strategy that holds it whole.

    Attributes:
        holds_gradients: gradients are the engine's, which steps on float32 copies itself; :meth:`gradient_norm` gives
            their norm after the step.
        shards_layers: weights are gathered by a layer's forward pass, which has to be called through the whole model.
    """

    holds_gradients: bool = False
    shards_layers: bool = False

    def shard(self, model: nn.Module) -> None:
        """Called once the policy is built, by ``configure_model``; by default it stays whole."""

    def gather_for_inference(self, model: nn.Module) -> AbstractContextManager[None]:
        """Called by all ranks around sampling and scoring; inside, forward passes run without the trainer.

        Raises:
            InputError: the weights are in shards that this strategy cannot gather.
        """
        return self.gather_all(model)

    def gather_all(self, model: nn.Module) -> AbstractContextManager[None]:
        """Called by all ranks; inside, every rank holds all weights.

        Raises:
            InputError: the weights are in shards that this strategy cannot gather.
        """
        return _nothing_to_gather(model, self)

    def gradient_norm(self) -> float | None:
        """Called after a step where ``holds_gradients``: the norm before clipping; None: no step was taken yet."""
        return None


class _LightningStrategy(PolicyStrategy):
    """The defaults, for a strategy that is Lightning's."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy

    def gather_all(self, model: nn.Module) -> AbstractContextManager[None]:
        return _nothing_to_gather(model, self._strategy)


def _nothing_to_gather(model: nn.Module, strategy: Strategy | PolicyStrategy) -> AbstractContextManager[None]:
    if is_sharded(model):
        raise InputError(
            f"{type(strategy).__name__} holds the policy in shards, and this package cannot gather them. Use "
            "dpr_lightning.strategies.Zero3Strategy or Fsdp2Strategy as `trainer.strategy`."
        )
    return nullcontext()


def as_policy_strategy(strategy: Strategy) -> PolicyStrategy:
    """The strategy itself where it is a :class:`PolicyStrategy`; otherwise the defaults."""
    return strategy if isinstance(strategy, PolicyStrategy) else _LightningStrategy(strategy)
