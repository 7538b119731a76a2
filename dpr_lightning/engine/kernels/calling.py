"""Calls of the compiled library: which tensors it takes, and the signatures of its functions."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from dpr_lightning.engine.kernels import compiling

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
SIGNATURES: dict[str, list[Any]] = {
    "pack": [POINTER] * 2 + [LONG] * 2 + [INT],
    "product": [POINTER] * 5 + [LONG] * 3 + [INT] * 2,
    "norm": [POINTER] * 3 + [LONG] * 2 + [FLOAT, INT],
    "attend": [POINTER] * 12 + [LONG] * 8 + [FLOAT, INT],
}
"""Arguments of the functions ``NAME_TYPE`` of decoding.cpp."""


def has_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether there are kernels for this type and device; the first call compiles the library."""
    return device.type == "cpu" and dtype in TYPES and compiling.load() is not None


def serves(*tensors: Tensor) -> bool:
    """Whether kernels take these tensors: plain ones of one type, while nothing traces PyTorch's operations."""
    first = tensors[0]
    return (
        all(is_plain(tensor) and tensor.dtype == first.dtype and tensor.device == first.device for tensor in tensors)
        and has_kernels(first.dtype, first.device)
        and not is_watched()
    )


def is_plain(tensor: Tensor) -> bool:
    """Whether ``tensor`` has its numbers in memory: it is not sharded, quantised, or without content."""
    return type(tensor) in (Tensor, nn.Parameter)


def is_watched() -> bool:
    """Whether something traces PyTorch's operations, such as a counter or a compiler, which kernels would bypass."""
    compiles = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return compiles or _get_current_dispatch_mode() is not None


def library() -> ctypes.CDLL:
    """The compiled library, for callers that know of it by :func:`has_kernels`."""
    loaded = compiling.load()
    assert loaded is not None
    return loaded


@cache
def function(name: str, dtype: torch.dtype) -> Any:
    """The function ``name`` of :data:`SIGNATURES` for numbers of this type, with the types of its arguments."""
    called = library()[f"{name}_{TYPES[dtype]}"]
    called.argtypes, called.restype = SIGNATURES[name], None
    return called


def run(name: str, dtype: torch.dtype, tensors: Sequence[Tensor | None], *numbers: float) -> None:
    """Call the function ``name`` for numbers of this type, where :func:`has_kernels` is true for it.

    Args:
        name: of :data:`SIGNATURES`.
        dtype: of the tensors' numbers.
        tensors: passed as the address of their first number; None as a null pointer. Nothing is checked here.
        numbers: passed after them; PyTorch's number of threads follows.
    """
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    function(name, dtype)(*addresses, *numbers, torch.get_num_threads())


@cache
def lanes() -> int:
    """Numbers of a vector register; some functions require widths that are multiples of it."""
    return int(library().lanes())


def panel() -> int:
    """Columns of a packed weight that are stored together."""
    return int(library().panel())
