"""Floating-point operations of a training step, counted by PyTorch and not estimated."""

import tempfile
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from dpr_lightning.cli.lightning import run_lightning
from dpr_lightning.errors import InputError

STEPS = 9


def flops_of_a_step(config: Path) -> float:
    """Floating-point operations of one optimizer step of ``dpr fit --config``: sampling, scoring and learning.

    Runs nine steps and counts those after the first, so that set-up does not count. PyTorch's counter sees matrix
    products, convolutions and attention. No files are written.
    """
    # One optimizer may step another, once or in parts: MasterWeights does.
    done: dict[int, list[int]] = {}
    with tempfile.TemporaryDirectory() as folder, FlopCounterMode(display=False) as counter:
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
            lambda optimizer, *_: done.setdefault(id(optimizer), []).append(counter.get_total_flops())
        )
        try:
            options = (f"--trainer.{key}={value}" for key, value in quiet.items())
            run_lightning(["fit", "--config", str(config), *options])
        finally:
            hook.remove()
    counts = min(done.values(), key=len, default=[])
    if len(counts) < 2:
        raise InputError(
            f"{config} takes {len(counts)} optimizer steps, and what one costs is counted after the first: let it take "
            "two or more."
        )
    return (counts[-1] - counts[0]) / (len(counts) - 1)
