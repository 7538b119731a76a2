"""What a training step costs, counted and not estimated."""

import tempfile
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from dpr_lightning.cli.lightning import run_lightning
from dpr_lightning.errors import InputError

STEPS = 9


def flops_of_a_step(config: Path) -> float:
    """Floating-point operations of one optimizer step of ``dpr fit --config``: sampling, scoring and learning.

    What a run of nine steps computes after its first, so that what happens once does not count. Matrix products,
    convolutions and attention are counted, as PyTorch's counter has them; nothing is written.
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
            given = (f"--trainer.{key}={value}" for key, value in quiet.items())
            run_lightning(["fit", "--config", str(config), *given])
        finally:
            hook.remove()
    counts = min(done.values(), key=len, default=[])
    if len(counts) < 2:
        raise InputError(
            f"{config} takes {len(counts)} optimizer steps, and what one costs is counted after the first: let it take "
            "two or more."
        )
    return (counts[-1] - counts[0]) / (len(counts) - 1)
