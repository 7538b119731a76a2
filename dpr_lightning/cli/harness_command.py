"""``dpr harness``: benchmarks of lm-eval."""

import json
from pathlib import Path
from typing import Annotated

from rich.table import Table

from dpr_lightning.evaluation.harness import HarnessSpec, harness_scores
from dpr_lightning.paths import ReadPath, Writes
from dpr_lightning.policies.inference_policy import frozen_policy
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.reports.console import console


def harness(
    policy: ReadPath,
    tasks: list[str],
    task_folder: ReadPath | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    few_shot: int | None = None,
    chat: bool = False,
    dtype: Dtype = "float32",
    seed: int = 0,
    output: Annotated[str | None, Writes(marks=('"results"',))] = None,
) -> None:
    """Evaluate a policy on tasks of the Language Model Evaluation Harness.

    Args:
        policy: folder of the policy.
        tasks: names of tasks or groups.
        task_folder: folder with your task files.
        limit: documents of a task.
        batch_size: sequences at once.
        few_shot: examples in a prompt; the task's by default.
        chat: write prompts with the tokenizer's chat template.
        dtype: of the parameters.
        seed: of few-shot examples and of sampling.
        output: JSON file to write.
    """
    spec = HarnessSpec(tasks, task_folder, limit, batch_size, few_shot, chat)
    model, tokenizer = frozen_policy(policy, dtype)
    results = harness_scores(model, tokenizer, spec, seed=seed)
    table = Table(title=policy, title_justify="left", header_style="bold")
    for heading in ("task", "metric", "value", "standard error"):
        table.add_column(heading, justify="right" if heading in ("value", "standard error") else "left")
    for task, metrics in results.items():
        for name, value in metrics.items():
            if "_stderr" not in name:
                error = metrics.get(f"{name}_stderr")
                table.add_row(task, name, f"{value:.4f}", "" if error is None else f"{error:.4f}")
    console.print(table)
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps({"policy": policy, "results": results}, indent=2) + "\n", encoding="utf-8")
