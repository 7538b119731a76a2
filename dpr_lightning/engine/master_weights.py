"""An optimizer that steps float32 copies of half-precision weights."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

HALF = (torch.bfloat16, torch.float16)
_AT_ONCE = 1 << 24
"""Number of weights whose float32 gradients exist at the same time."""


class MasterWeights(Optimizer):
    """Steps float32 copies of weights, and rounds the weights from them after every step.

    A bfloat16 number has 8 bits of precision: near 1, a change below 0.004 is lost, and a step of policy gradients at a
    learning rate of 1e-6 changes nothing at all. In the copies such changes add up until they show (Micikevicius et al.
    2018, *Mixed Precision Training*).

    Forward and backward passes, gradients, clipping and all-reduce use the half-precision weights alone.
    ``param_groups`` has those; options that a schedule or a user changes there apply to the step of the copies.

    Optimizers of ``torch.optim`` that step each weight independently step them in parts, so that float32 gradients
    exist for one part at a time: all of them would take as much memory as the copies, and the step 1.8 times as long
    (`python -m benchmarks.ablation`).

    Args:
        weights: to train; those in half precision get a copy, all others are stepped directly.
        build: creates the optimizer of the copies.
    """

    def __init__(self, weights: Iterable[Tensor], build: Callable[[list[Any]], Optimizer]) -> None:
        all_weights = list(weights)
        self._copies = {weight: weight.detach().float() for weight in all_weights if weight.dtype in HALF}
        self.inner = build([self._copies.get(weight, weight) for weight in all_weights])
        self._parts = list(_parts(self._copies)) if _steps_each_by_itself(self.inner) else [list(self._copies)]
        self._full_precision = [weight for weight in all_weights if weight not in self._copies]
        original = {copy: weight for weight, copy in self._copies.items()}
        groups = [
            {**group, "params": [original.get(weight, weight) for weight in group["params"]]}
            for group in self.inner.param_groups
        ]
        super().__init__(groups, self.inner.defaults)
        self.state = self.inner.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the inner optimizer; weights without a gradient do not change."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({name: value for name, value in group.items() if name != "params"})
        # Weights without a copy are stepped with the first part, and with no other.
        self._step_part(self._parts[0])
        with _without_gradients(self._full_precision):
            for part in self._parts[1:]:
                self._step_part(part)
        return loss

    def _step_part(self, weights: list[Tensor]) -> None:
        learnt = []
        for weight in weights:
            if weight.grad is not None:
                self._copies[weight].grad = weight.grad.float()
                learnt.append((weight, self._copies[weight]))
        try:
            self.inner.step()
        finally:
            for _, copy in learnt:
                copy.grad = None
        for weight, copy in learnt:
            weight.copy_(copy)

    def state_dict(self) -> dict[str, Any]:
        """The state of the inner optimizer, and the copies in the order of the weights."""
        return {**self.inner.state_dict(), "master_weights": list(self._copies.values())}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer; one without copies leaves them equal to the weights."""
        all_weights = dict(state_dict)
        copies = all_weights.pop("master_weights", list(self._copies))
        self.inner.load_state_dict(all_weights)
        self.state = self.inner.state
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            group.update({name: value for name, value in inner.items() if name != "params"})
        for copy, saved in zip(self._copies.values(), copies, strict=True):
            copy.copy_(saved)


def _steps_each_by_itself(optimizer: Optimizer) -> bool:
    """Whether an optimizer is known to step each weight independently of the other ones."""
    return type(optimizer).__module__.split(".")[:2] == ["torch", "optim"] and not isinstance(optimizer, LBFGS)


def _parts(weights: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbouring weights with at most :data:`_AT_ONCE` numbers in all; a larger one is alone."""
    part: list[Tensor] = []
    for weight in weights:
        if part and sum(map(Tensor.numel, part)) + weight.numel() > _AT_ONCE:
            yield part
            part = []
        part.append(weight)
    yield part


@contextmanager
def _without_gradients(weights: list[Tensor]) -> Iterator[None]:
    """Remove the gradients of ``weights`` inside the context, so that an optimizer skips them."""
    gradients = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    try:
        yield
    finally:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
