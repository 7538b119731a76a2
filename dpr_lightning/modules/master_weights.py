"""An optimizer for weights in half precision, which keeps them in float32 beside."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

HALF = (torch.bfloat16, torch.float16)


class MasterWeights(Optimizer):
    """Steps float32 copies of weights, and rounds the weights from them after every step.

    A bfloat16 number has 8 bits of precision: near 1, a change below 0.004 is lost, and a step of policy gradients at a
    learning rate of 1e-6 changes nothing at all. In the copies such changes add up until they show (Micikevicius et al.
    2018, *Mixed Precision Training*).

    Forward and backward passes, gradients, clipping and exchange between ranks see the half-precision weights alone.
    ``param_groups`` holds those; what a schedule or a user changes there is what the copies are stepped with.

    Args:
        weights: to train; those in half precision get a copy, others are stepped as they are.
        build: makes the optimizer that steps the copies.
    """

    def __init__(self, weights: Iterable[Tensor], build: Callable[[list[Any]], Optimizer]) -> None:
        held = list(weights)
        self._copies = {weight: weight.detach().float() for weight in held if weight.dtype in HALF}
        self.inner = build([self._copies.get(weight, weight) for weight in held])
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
        for weight, copy in self._copies.items():
            copy.grad = None if weight.grad is None else weight.grad.float()
        self.inner.step()
        for weight, copy in self._copies.items():
            if copy.grad is not None:
                copy.grad = None
                weight.copy_(copy)
        return loss

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
