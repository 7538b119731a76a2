"""What `dpr_lightning.engine.decoding.cuda_graph.capture` does on a GPU, done on a CPU with PyTorch's operations.

A recording calls no Python when it is played: it is a list of operations on tensors that stay where they were, and
what they gave once is written over. It is made without any effect, nothing in it may ask for a number, and it keeps no
tensor alive that was there before: one that is gone when it is played is an error here, and other memory on a GPU.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_aten: Any = torch.ops.aten
_ASK_THE_HOST = {
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.equal.default,
    _aten.is_nonzero.default,
    _aten.repeat_interleave.Tensor,
    _aten.unique_dim.default,
    _aten._unique2.default,
    _aten.unique_consecutive.default,
    _aten.lift_fresh.default,  # a number of Python's, from memory that is not pinned
}


@dataclass(frozen=True)
class _Outside:
    """A tensor that exists before the capture."""

    storage: "weakref.ref[torch.UntypedStorage]"
    dtype: torch.dtype
    layout: tuple[int, tuple[int, ...], tuple[int, ...]]

    def tensor(self) -> Tensor:
        """The tensor, if it still exists."""
        storage = self.storage()
        assert storage is not None, "a recording reads memory that was freed"
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.layout)


class _Recorder(TorchDispatchMode):
    """Records operations, and the contents of the tensors that they change."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._created: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arguments = tensors((args, kwargs))
        by_index = function in (_aten.index.Tensor, _aten.index_put_.default)
        if function in _ASK_THE_HOST or (by_index and any(part.dtype == torch.bool for part in arguments[1:])):
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        if function._schema.is_mutable:
            for part in arguments:
                self._keep(part)
        result = function(*args, **kwargs)
        known = {part.untyped_storage().data_ptr() for part in arguments}
        self._created |= {part.untyped_storage().data_ptr() for part in tensors(result)} - known
        self.calls.append((function, *tree_map_only(Tensor, self._reference, (args, kwargs, result))))
        return result

    def _reference(self, part: Tensor) -> Any:
        storage = part.untyped_storage()
        if storage.data_ptr() in self._created:
            return part
        layout = (part.storage_offset(), tuple(part.shape), tuple(part.stride()))
        return _Outside(weakref.ref(storage), part.dtype, layout)

    def _keep(self, part: Tensor) -> None:
        storage = part.untyped_storage()
        if storage.data_ptr() not in self._created:
            self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def restore(self) -> None:
        """Restore the tensors that the capture changed."""
        for storage, before in self._before.values():
            storage.copy_(before)
        self._before.clear()


def tensors(values: Any) -> list[Tensor]:
    """All tensors in nested values, in order."""
    return [part for part in tree_leaves(values) if isinstance(part, Tensor)]


def capture(function: Callable[[], None]) -> Callable[[], None]:
    """Capture ``function``; returns the replay."""
    recorder = _Recorder()
    try:
        with recorder:
            function()
    finally:
        recorder.restore()
    return Recording(recorder.calls)


class Recording:
    """Replays operations on the tensors of the capture."""

    def __init__(self, calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]]) -> None:
        self._calls = calls

    @torch.no_grad()
    def __call__(self) -> None:
        """Once."""
        for function, args, kwargs, result in self._calls:
            held_args, held_kwargs = tree_map_only(_Outside, _Outside.tensor, (args, kwargs))
            again = function(*held_args, **held_kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)
