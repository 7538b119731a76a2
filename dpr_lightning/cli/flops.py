"""What a training step costs, counted and not estimated."""

import tempfile
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

from dpr_lightning.cli.lightning import run_lightning

FIRST, LAST = 1, 9


def flops_of_a_step(config: Path) -> float:
    """Floating-point operations of one optimizer step of ``dpr fit --config``: sampling, scoring and learning.

    The difference between a run of nine steps and a run of one, so that what happens once does not count. Matrix
    products, convolutions and attention are counted, as PyTorch's counter has them; nothing is written.
    """
    return (_count(config, LAST) - _count(config, FIRST)) / (LAST - FIRST)


def _count(config: Path, steps: int) -> int:
    with tempfile.TemporaryDirectory() as folder, FlopCounterMode(display=False) as counter:
        quiet = {
            "max_steps": steps,
            "logger": "false",
            "callbacks": "null",
            "enable_checkpointing": "false",
            "enable_progress_bar": "false",
            "enable_model_summary": "false",
            "limit_val_batches": 0,
            "default_root_dir": folder,
        }
        run_lightning(["fit", "--config", str(config), *(f"--trainer.{key}={value}" for key, value in quiet.items())])
    return int(counter.get_total_flops())
