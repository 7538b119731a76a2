"""Floating-point operations of a training step, counted by PyTorch and not estimated."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dpr_lightning.errors import InputError
from dpr_lightning.lightning_cli.dpr_cli import run_lightning

STEPS = 9


class FlopSum(TorchDispatchMode):
    """Adds up the operations of all products within it, by the formulas of PyTorch's ``FlopCounterMode``.

    That also attributes them to modules and tries to decompose every operation, which takes most of the time of small
    models.

    Attributes:
        total: floating-point operations.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self._composite: dict[Any, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it; one that is made of others (in inference mode) as those."""
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and self._is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result

    def _is_composite(self, func: Any) -> bool:
        if func not in self._composite:
            key = "CompositeImplicitAutograd"
            self._composite[func] = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
        return self._composite[func]


def flops_of_a_step(config: Path) -> float:
    """Floating-point operations of one optimizer step of ``dpr fit --config``: sampling, scoring and learning.

    Runs nine steps and counts those after the first, so that set-up does not count. PyTorch's counter sees matrix
    products, convolutions and attention. No files are written.
    """
    # One optimizer may step another, once or in parts: MasterWeights does.
    done: dict[int, list[int]] = {}
    with tempfile.TemporaryDirectory() as folder, FlopSum() as counter:
        quiet = {
            "max_steps": STEPS,
            "logger": "false",
            "callbacks": "null",
            "enable_checkpointing": "false",
            "enable_progress_bar": "false",
            "enable_model_summary": "false",
            "limit_val_batches": 0,
            "default_root_dir": folder,
        }
        hook = register_optimizer_step_post_hook(
            lambda optimizer, *_: done.setdefault(id(optimizer), []).append(counter.total)
        )
        try:
            options = (f"--trainer.{key}={value}" for key, value in quiet.items())
            run_lightning(["fit", "--config", str(config), *options, "--run=null"])
        finally:
            hook.remove()
    counts = min(done.values(), key=len, default=[])
    if len(counts) < 2:
        raise InputError(
            f"{config} takes {len(counts)} optimizer steps, and what one costs is counted after the first: let it take "
            "two or more."
        )
    return (counts[-1] - counts[0]) / (len(counts) - 1)
