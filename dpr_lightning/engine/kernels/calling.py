"""Calls of the compiled library: which tensors it takes, and the signatures of its functions."""

import ctypes
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
    return device.type == "cpu" and dtype in TYPES and compiled() is not None


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


class Kernels:
    """The functions of a compiled library, with their argument types.

    Attributes:
        lanes: function without arguments: numbers of a vector.
        panel: function without arguments: columns of a packed weight that are stored together.
        functions: by name and type of the numbers.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.lanes, self.panel = library.lanes, library.panel
        self.functions: dict[tuple[str, torch.dtype], Any] = {}
        for name, arguments in SIGNATURES.items():
            for dtype, kind in TYPES.items():
                called = library[f"{name}_{kind}"]
                called.argtypes, called.restype = arguments, None
                self.functions[name, dtype] = called


@cache
def compiled() -> Kernels | None:
    """The compiled kernels; None where there are none."""
    library = compiling.load()
    return None if library is None else Kernels(library)


def loaded() -> Kernels:
    """The compiled kernels, for callers that know of them by :func:`has_kernels`."""
    kernels = compiled()
    assert kernels is not None
    return kernels


def function(name: str, dtype: torch.dtype) -> Any:
    """The function ``name`` for numbers of this type."""
    return loaded().functions[name, dtype]


def address(tensor: Tensor | None) -> int | None:
    """Address of a tensor's first number; None without a tensor."""
    return None if tensor is None else tensor.data_ptr()


@cache
def lanes() -> int:
    """Numbers of a vector register; some functions require widths that are multiples of it."""
    return int(loaded().lanes())
