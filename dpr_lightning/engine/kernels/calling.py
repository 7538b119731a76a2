"""From tensors to the functions of the compiled library: who is served, and how they are called."""

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
    "lay_out": [POINTER] * 2 + [LONG] * 2 + [INT],
    "product": [POINTER] * 5 + [LONG] * 3 + [INT] * 2,
    "norm": [POINTER] * 3 + [LONG] * 2 + [FLOAT, INT],
    "attend": [POINTER] * 12 + [LONG] * 8 + [FLOAT, INT],
    "draw": [POINTER] * 4 + [LONG] * 2 + [FLOAT, INT],
}
"""Of ``NAME_TYPE`` for every type: decoding.cpp."""


def has_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether tensors of this type and place can be served; compiles the library, at the first call."""
    return device.type == "cpu" and dtype in TYPES and compiled() is not None


def serves(*tensors: Tensor) -> bool:
    """Whether these tensors are served: plain ones of one type, and nobody is to see each operation of PyTorch."""
    first = tensors[0]
    return (
        all(is_plain(tensor) and tensor.dtype == first.dtype and tensor.device == first.device for tensor in tensors)
        and has_kernels(first.dtype, first.device)
        and not is_watched()
    )


def is_plain(tensor: Tensor) -> bool:
    """Whether its numbers lie in memory as they are: not in shards, quantised, or nowhere."""
    return type(tensor) in (Tensor, nn.Parameter)


def is_watched() -> bool:
    """Whether something looks at each operation of PyTorch, such as a counter or a compiler: it would not see these."""
    compiles = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return compiles or _get_current_dispatch_mode() is not None


@cache
def compiled() -> Any:
    """The compiled library; None where there is none."""
    made = compiling.load()
    return None if made is None else with_signatures(made)


def with_signatures(made: ctypes.CDLL) -> ctypes.CDLL:
    """The same library, its functions told what they take."""
    for name, arguments in SIGNATURES.items():
        for kind in TYPES.values():
            called = getattr(made, f"{name}_{kind}")
            called.argtypes, called.restype = arguments, None
    return made


def function(name: str, dtype: torch.dtype) -> Any:
    """That computes with numbers of this type."""
    return getattr(compiled(), f"{name}_{TYPES[dtype]}")


def place(tensor: Tensor | None) -> int | None:
    """Of a tensor's first number in memory."""
    return None if tensor is None else tensor.data_ptr()


@cache
def lanes() -> int:
    """Numbers that are computed at once: some functions take multiples of it."""
    return int(compiled().lanes())
