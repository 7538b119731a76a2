"""An optimizer for weights in half precision, which keeps them in float32 beside."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

HALF = (torch.bfloat16, torch.float16)
_AT_ONCE = 1 << 24
"""Weights whose gradients are in float32 at the same time."""


class MasterWeights(Optimizer):
    """Steps float32 copies of weights, and rounds the weights from them after every step.

    A bfloat16 number has 8 bits of precision: near 1, a change below 0.004 is lost, and a step of policy gradients at a
    learning rate of 1e-6 changes nothing at all. In the copies such changes add up until they show (Micikevicius et al.
    2018, *Mixed Precision Training*).

    Forward and backward passes, gradients, clipping and exchange between ranks see the half-precision weights alone.
    ``param_groups`` holds those; what a schedule or a user changes there is what the copies are stepped with.

    The optimizers of ``torch.optim`` that step each weight by itself do so in parts, so that only those of a part have
    their gradients in float32: of all of them these would take as much as the copies do.

    Args:
        weights: to train; those in half precision get a copy, others are stepped as they are.
        build: makes the optimizer that steps the copies.
    """

    def __init__(self, weights: Iterable[Tensor], build: Callable[[list[Any]], Optimizer]) -> None:
        held = list(weights)
        self._copies = {weight: weight.detach().float() for weight in held if weight.dtype in HALF}
        self.inner = build([self._copies.get(weight, weight) for weight in held])
        self._parts = list(_parts(self._copies)) if _steps_each_by_itself(self.inner) else [list(self._copies)]
        self._others = [weight for weight in held if weight not in self._copies]
        original = {copy: weight for weight, copy in self._copies.items()}
        groups = [
            {**group, "params": [original.get(weight, weight) for weight in group["params"]]}
            for group in self.inner.param_groups
        ]
        super().__init__(groups, self.inner.defaults)
        self.state = self.inner.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the optimizer within; weights without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({name: value for name, value in group.items() if name != "params"})
        # The others take part in the first step of the optimizer within, and in no other.
        self._step_part(self._parts[0])
        with _without_gradients(self._others):
            for part in self._parts[1:]:
                self._step_part(part)
        return loss

    def _step_part(self, weights: list[Tensor]) -> None:
        learnt = [(weight, self._copies[weight]) for weight in weights if weight.grad is not None]
        for weight, copy in learnt:
            copy.grad = weight.grad.float()  # type: ignore[union-attr]
        try:
            self.inner.step()
        finally:
            for _, copy in learnt:
                copy.grad = None
        for weight, copy in learnt:
            weight.copy_(copy)

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer within, and the copies, in the order of the weights."""
        return {**self.inner.state_dict(), "master_weights": list(self._copies.values())}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of this optimizer; from one without copies, with the weights as they are."""
        held = dict(state_dict)
        copies = held.pop("master_weights", list(self._copies))
        self.inner.load_state_dict(held)
        self.state = self.inner.state
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            group.update({name: value for name, value in inner.items() if name != "params"})
        for copy, saved in zip(self._copies.values(), copies, strict=True):
            copy.copy_(saved)


def _steps_each_by_itself(optimizer: Optimizer) -> bool:
    """Whether what happens to a weight is known not to depend on which others are stepped in the same call."""
    return type(optimizer).__module__.split(".")[:2] == ["torch", "optim"] and not isinstance(optimizer, LBFGS)


def _parts(weights: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours that have at most :data:`_AT_ONCE` numbers together; a larger one is alone."""
    part: list[Tensor] = []
    for weight in weights:
        if part and sum(map(Tensor.numel, part)) + weight.numel() > _AT_ONCE:
            yield part
            part = []
        part.append(weight)
    yield part


@contextmanager
def _without_gradients(weights: list[Tensor]) -> Iterator[None]:
    """Let an optimizer leave these as they are."""
    gradients = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    try:
        yield
    finally:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
