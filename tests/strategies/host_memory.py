"""One rank builds a policy, then helps to gather it, and writes the peak of its private memory in each, in bytes.

python -m tests.strategies.host_memory STRATEGY FOLDER FILE
"""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpr_lightning.data import DemonstrationDataModule
from dpr_lightning.modules import SupervisedIRL
from dpr_lightning.policies import PolicySpec, gathered_weights
from tests.strategies.worker import STRATEGIES
from tests.training import quiet_trainer


def own_memory() -> int:
    """Bytes that only this process has: pages of a file that many map are the system's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def most_memory(act: Callable[[], object]) -> int:
    """Bytes that this process has more than before, at most, while it acts."""
    before, most, done = own_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, own_memory() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    act()
    done.set()
    watcher.join()
    return most


class Watched(SupervisedIRL):
    """Ends after it was built and gathered."""

    file = ""

    def configure_model(self) -> None:
        """Build, and look at the memory all the while."""
        built = most_memory(super().configure_model)
        rank = os.environ["RANK"]
        gathered = most_memory(lambda: gathered_weights(self.policy, keep=rank == "0"))
        Path(f"{self.file}.{rank}").write_text(f"{built} {gathered}")
        torch.distributed.barrier()
        raise SystemExit


if __name__ == "__main__":
    name, folder, Watched.file = sys.argv[1:]
    torch.set_num_threads(1)
    trainer: Any = quiet_trainer(Path(Watched.file).parent, strategy=STRATEGIES[name](), devices=2, max_steps=1)
    rows = str(Path(folder).parent / "rows.jsonl")
    trainer.fit(
        Watched(PolicySpec(source=folder)), datamodule=DemonstrationDataModule(rows, batch_size=1, validation=None)
    )
