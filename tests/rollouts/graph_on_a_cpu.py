"""What `dpr_lightning.rollouts.cuda_graph.capture` does on a GPU, done on a CPU with PyTorch's operations.

A recording calls no Python when it is played: it is a list of operations on tensors that stay where they were, and
what they gave once is written over. It is made without any effect, and nothing in it may ask for a number.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
    _aten.lift_fresh.default,  # a number of Python's, from memory that is not pinned
}


class _Recorder(TorchDispatchMode):
    """Notes operations, and the contents of what they change."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors((args, kwargs))
        by_place = function in (_aten.index.Tensor, _aten.index_put_.default)
        if function in _ASK_THE_HOST or (by_place and any(part.dtype == torch.bool for part in given[1:])):
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        if function._schema.is_mutable:
            for part in given:
                self._keep(part)
        found = function(*args, **kwargs)
        known = {part.untyped_storage().data_ptr() for part in given}
        self._made |= {part.untyped_storage().data_ptr() for part in tensors(found)} - known
        self.calls.append((function, args, kwargs, found))
        return found

    def _keep(self, part: Tensor) -> None:
        storage = part.untyped_storage()
        if storage.data_ptr() not in self._made:
            self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def restore(self) -> None:
        """Undo what recording did."""
        for storage, before in self._before.values():
            storage.copy_(before)


def tensors(held: Any) -> list[Tensor]:
    """All of them, in order."""
    return [part for part in tree_leaves(held) if isinstance(part, Tensor)]


def capture(function: Callable[[], None]) -> Callable[[], None]:
    """Record ``function``; what is given back plays it."""
    recorder = _Recorder()
    try:
        with recorder:
            function()
    finally:
        recorder.restore()
    return Recording(recorder.calls)


class Recording:
    """Plays operations on the tensors that they were recorded on."""

    def __init__(self, calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]]) -> None:
        self._calls = calls

    @torch.no_grad()
    def __call__(self) -> None:
        """Once."""
        for function, args, kwargs, found in self._calls:
            again = function(*args, **kwargs)
            for old, new in zip(tensors(found), tensors(again), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)
