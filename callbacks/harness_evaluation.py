"""Benchmarks of the Language Model Evaluation Harness, on the policy in training."""

from typing import Any

import torch.distributed
from lightning import Trainer

from dpr_lightning.callbacks.periodic_evaluation import PeriodicEvaluation
from dpr_lightning.evaluation.harness import HarnessSpec, harness_scores
from dpr_lightning.paths import ReadPath


class HarnessEvaluation(PeriodicEvaluation):
    """Logs lm-eval's metrics as ``harness/TASK/METRIC``. Rank 0 evaluates while the others wait.

    Args:
        tasks: names of tasks or groups.
        task_folder: with task files of your own.
        every_n_steps: optimizer steps between evaluations.
        limit: documents of a task.
        batch_size: sequences at once.
        few_shot: examples in a prompt; None takes the task's.
        chat: write prompts with the tokenizer's chat template.

    Raises:
        InputError: no task.
    """

    def __init__(
        self,
        tasks: list[str],
        task_folder: ReadPath | None = None,
        every_n_steps: int = 500,
        limit: int | None = None,
        batch_size: int = 16,
        few_shot: int | None = None,
        chat: bool = False,
    ) -> None:
        super().__init__(every_n_steps)
        self.spec = HarnessSpec(tasks, task_folder, limit, batch_size, few_shot, chat)

    def metric_names(self) -> list[str]:
        """A task decides which metrics it has."""
        return ["harness/*"]

    def measure(self, trainer: Trainer, module: Any) -> dict[str, float]:
        """The metrics of all tasks; on ranks other than 0 nothing."""
        scores: dict[str, float] = {}
        with module.full_policy() as policy:
            if trainer.is_global_zero:
                by_task = harness_scores(policy, module.tokenizer, self.spec)
                scores = {
                    f"harness/{task}/{name}": score
                    for task, by_metric in by_task.items()
                    for name, score in by_metric.items()
                }
            if torch.distributed.is_initialized():
                trainer.strategy.barrier("harness")
        return scores
