"""Bytes of tensors that are alive, counted operation by operation."""

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments or results of an operation; faster than PyTorch's trees of any kind."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are created while it is active and still alive, with content or without.

    Attributes:
        live: bytes now.
        gradients: how many of those are gradients of watched weights.
        peak: the most there were at once.
        gradients_at_peak: how many of those were gradients.
        working_peak: the most there were at once without gradients.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.gradients = self.gradients_at_peak = self.working_peak = 0
        self._seen: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._with_gradient: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its result."""
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self._note(tensor)
        return result

    def _note(self, tensor: Any) -> None:
        if is_traceable_wrapper_subclass(tensor):
            # Such as a DTensor, whose operations on the tensors inside are not dispatched here. This method names the
            # attributes with those tensors, by PyTorch's protocol of such classes, and a DTensor's mesh with them.
            parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
            for part in parts:
                if isinstance(part, Tensor):
                    self._note(part)
            return
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key, nbytes = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def freed(_: Any) -> None:
            self.live -= self._seen.pop(key)[1]

        self._seen[key] = (weakref.ref(storage, freed), nbytes)
        self._add(nbytes)

    def resized(self, storage: UntypedStorage) -> None:
        """Called after a storage was resized, as FSDP2 does to empty and refill its own."""
        if id(storage) in self._seen:
            reference, before = self._seen[id(storage)]
            self._seen[id(storage)] = (reference, storage.nbytes())
            self._add(storage.nbytes() - before)

    def _add(self, nbytes: int) -> None:
        self.live += nbytes
        self.working_peak = max(self.working_peak, self.live - self.gradients)
        if self.live > self.peak:
            self.peak, self.gradients_at_peak = self.live, self.gradients

    def watch_gradients(self, model: nn.Module) -> None:
        """Count the gradients of a model's weights as :attr:`gradients` from now on."""

        def accumulated(weight: Tensor) -> None:
            if id(weight) not in self._with_gradient:
                self._with_gradient.add(id(weight))
                self.gradients += weight.nbytes

        for weight in model.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(accumulated)

    def gradients_freed(self) -> None:
        """Called when the gradients of watched weights are freed."""
        self._with_gradient.clear()
        self.gradients = 0

    def reset(self) -> None:
        """Forget the peaks."""
        self.peak, self.gradients_at_peak, self.working_peak = self.live, self.gradients, self.live - self.gradients
