"""Benchmarks on the policy in training."""

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import DummyLogger

from dpr_lightning.callbacks import HarnessEvaluation
from dpr_lightning.data import DemonstrationDataModule
from dpr_lightning.modules import SupervisedIRL
from dpr_lightning.policies import PolicySpec
from tests.training import quiet_trainer, write_demonstrations


class Kept(DummyLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None, **_: Any) -> None:
        """Keep it."""
        self.logged.append((step or 0, dict(metrics)))


def test_it_is_asked_at_the_start_every_so_often_and_at_the_end(
    tiny_policy_folder: Path, harness_tasks: str, tmp_path: Path
) -> None:
    data = DemonstrationDataModule(
        write_demonstrations(tmp_path / "rows.jsonl"), batch_size=4, cache_dir=None, validation=None
    )
    logger = Kept()
    module = SupervisedIRL(PolicySpec(source=str(tiny_policy_folder)))
    evaluation = HarnessEvaluation(["doubled"], harness_tasks, every_n_steps=2, limit=2)
    quiet_trainer(tmp_path, max_steps=3, callbacks=[evaluation], logger=logger).fit(module, datamodule=data)
    assert [step for step, metrics in logger.logged if "harness/doubled/acc" in metrics] == [0, 2, 3]
    assert module.policy.training
