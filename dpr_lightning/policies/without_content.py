"""Tensors without content: what runs and which shapes it has is as in training, and no number is computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dpr_lightning.live_bytes import tensors_in

_NOT_OF_FINITE: tuple[Any, ...] = (
    *(torch.isnan, torch.isinf, torch.isposinf, torch.isneginf),
    *(Tensor.isnan, Tensor.isinf, Tensor.isposinf, Tensor.isneginf),
)
_OF_FINITE_NUMBERS: dict[Any, bool] = {
    torch.isfinite: True,
    Tensor.isfinite: True,
    **dict.fromkeys(_NOT_OF_FINITE, False),
}
"""Questions of numbers, and their answer for one that is finite."""


@contextmanager
def without_content() -> Iterator[None]:
    """Inside, new tensors of floating-point numbers have no content; those of integers and booleans do.

    So masks, indices and lengths decide what runs, as they do in training. A number without content counts as finite,
    and as 0 where it is read (a norm, a difference that is logged or checked). A condition that depends on such numbers
    cannot be evaluated: reading it raises.
    """
    with _Functions(), _Operations():
        yield


class _Operations(TorchDispatchMode):
    """Computes operations of integers, and the shapes of all others."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shapes = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every operation."""
        kwargs = kwargs or {}
        tensors = list(tensors_in((args, kwargs)))
        if not tensors:
            with self._shapes:
                result = func(*args, **kwargs)
            without = isinstance(result, Tensor) and result.is_floating_point()
            return result if without else func(*args, **kwargs)
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point():
            return 0.0
        if func is torch.ops.aten.equal.default:
            return args[0] is args[1]
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _as_integers(args[1]))
        with self._shapes:
            return func(*args, **kwargs)


def _as_integers(indices: Any) -> list[Any]:
    """Indices of an operation, masks as the indices where they are True: only those have a shape that is known."""
    result: list[Any] = []
    for index in indices:
        is_mask = isinstance(index, Tensor) and index.dtype == torch.bool
        result += index.nonzero().unbind(1) if is_mask else [index]
    return result


class _Functions(TorchFunctionMode):
    """Replaces functions of PyTorch that need content, or that its shapes do not know."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of PyTorch."""
        kwargs = kwargs or {}
        if func in _OF_FINITE_NUMBERS and isinstance(args[0], FakeTensor):
            return torch.full(args[0].shape, _OF_FINITE_NUMBERS[func])
        if func is torch._grouped_mm:
            # PyTorch's supports only bfloat16 there; this one has the same shapes and gradients.
            return torch.ops.transformers.grouped_mm_fallback(*args[:2], offs=kwargs["offs"])
        return func(*args, **kwargs)
