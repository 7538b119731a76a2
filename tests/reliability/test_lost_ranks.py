"""A rank that hangs, or dies, is named by the ranks that wait for it."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning import Callback, LightningModule, Trainer

from tests.fork_server import ForkedProcess
from tests.strategies.launch import start_ranks
from tests.workspace import make_workspace, write_sft_config

TIMEOUT = 25


class Stuck(Callback):
    """One rank never comes back from its third step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Wait for two minutes, which is longer than the others do."""
        if trainer.global_rank == 1 and trainer.global_step == 2:
            (Path(trainer.default_root_dir) / "stuck").touch()
            time.sleep(120)


@pytest.fixture
def ranks(tmp_path: Path) -> list[ForkedProcess]:
    """Two, under DDP, of which one gets stuck."""
    workspace = make_workspace(tmp_path / "workspace")
    strategy = {
        "class_path": "lightning.pytorch.strategies.DDPStrategy",
        "init_args": {"timeout": f"0:00:{TIMEOUT:02}", "process_group_backend": "gloo"},
    }
    trainer = {"strategy": strategy, "devices": 2, "max_steps": 8}
    config = write_sft_config(
        tmp_path, {"source": workspace.sft}, workspace.demonstrations, trainer=trainer, batch_size=1
    )
    settings = yaml.safe_load(Path(config).read_text())
    settings["trainer"]["callbacks"] = [{"class_path": f"{__name__}.Stuck"}]
    Path(config).write_text(yaml.safe_dump(settings))
    return start_ranks(["dpr_lightning.cli.main", "fit", "--config", config], 2, tmp_path / "logs")


@pytest.mark.parametrize("dies", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_rank_is_named_that_the_other_waits_for(dies: bool, ranks: list[ForkedProcess], tmp_path: Path) -> None:
    deadline = time.monotonic() + 90
    try:
        while not (tmp_path / "stuck").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if dies:
            ranks[1].send_signal(signal.SIGKILL)
        assert ranks[0].wait(100) == 1
    finally:
        for process in ranks:
            process.send_signal(signal.SIGKILL)
            process.wait()
    log = (tmp_path / "logs" / "rank_0.log").read_text()
    assert "waited for another one in vain" in log
    assert "rank 0: step 3, micro-batch 2" in log
    assert "rank 1: step 2, micro-batch 1" in log
    assert "Traceback" not in log
