"""One rank builds a policy, and writes the most memory of its own that this took, in bytes.

python -m tests.strategies.host_memory STRATEGY FOLDER FILE
"""

import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from dpr_lightning.data import DemonstrationDataModule
from dpr_lightning.modules import SupervisedIRL
from dpr_lightning.policies import PolicySpec
from tests.strategies.worker import STRATEGIES
from tests.training import quiet_trainer


def own_memory() -> int:
    """Bytes that only this process has: pages of a file that many map are the system's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Watched(SupervisedIRL):
    """Ends after it was built."""

    file = ""

    def configure_model(self) -> None:
        """Build, and look at the memory all the while."""
        before, most, done = own_memory(), 0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.wait(0.002):
                most = max(most, own_memory() - before)

        watcher = threading.Thread(target=watch)
        watcher.start()
        super().configure_model()
        done.set()
        watcher.join()
        Path(f"{self.file}.{os.environ['RANK']}").write_text(str(most))
        torch.distributed.barrier()
        raise SystemExit


if __name__ == "__main__":
    name, folder, Watched.file = sys.argv[1:]
    torch.set_num_threads(1)
    trainer: Any = quiet_trainer(Path(Watched.file).parent, strategy=STRATEGIES[name](), devices=2, max_steps=1)
    rows = str(Path(folder).parent / "rows.jsonl")
    trainer.fit(Watched(PolicySpec(source=folder)), datamodule=DemonstrationDataModule(rows, batch_size=1))
