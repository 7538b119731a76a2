"""Scores of a policy in memory on tasks of the Language Model Evaluation Harness (lm-eval)."""

import logging
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.errors import InputError, first_line
from dpr_lightning.paths import ReadPath

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HarnessSpec:
    """Tasks and options of an evaluation by lm-eval.

    Args:
        tasks: names of tasks or groups.
        task_folder: folder with your task files, which take precedence.
        limit: documents of a task; None: all.
        batch_size: sequences at once.
        few_shot: examples in a prompt; None takes the task's.
        chat: write prompts with the tokenizer's chat template.
    """

    tasks: list[str]
    task_folder: ReadPath | None = None
    limit: int | None = None
    batch_size: int = 16
    few_shot: int | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        """Refuse values that lm-eval would read as everything, or as nothing."""
        if not self.tasks:
            raise InputError("`tasks` names at least one task of lm-eval.")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"`limit` counts documents, from 1; found {self.limit}.")
        if self.batch_size < 1 or (self.few_shot is not None and self.few_shot < 0):
            raise InputError(
                f"`batch_size` is at least 1 and `few_shot` at least 0; found {self.batch_size} and {self.few_shot}."
            )


def harness_scores(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, spec: HarnessSpec, *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Evaluate a policy on its device, without a change of its mode, its weights or the state of random generators.

    Args:
        model: a causal language model, possibly in training.
        tokenizer: of the model.
        spec: tasks and options.
        seed: of few-shot examples and of sampling.

    Returns:
        By task or group, its metrics by name, with their standard errors as ``NAME_stderr``.

    Raises:
        InputError: lm-eval is not installed, a task is not known or misses its data, or there is no chat template.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise InputError("Benchmarks need the package lm-eval: pip install 'dpr-lightning[eval]'.") from error
    manager = _tasks(spec)
    if spec.chat and not tokenizer.chat_template:
        raise InputError("`chat` asks for the tokenizer's chat template, and it has none.")
    training = model.training
    model.eval()
    try:
        device = str(next(model.parameters()).device)
        live: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=spec.batch_size, device=device)
        # lm-eval seeds every generator; a training goes on with its states of before.
        with isolate_rng():
            evaluated = simple_evaluate(
                model=live,
                tasks=list(spec.tasks),
                num_fewshot=spec.few_shot,
                limit=spec.limit,
                apply_chat_template=spec.chat,
                task_manager=manager,
                log_samples=False,
                bootstrap_iters=1000,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
    except (OSError, ValueError) as error:
        raise InputError(f"lm-eval could not evaluate {', '.join(spec.tasks)}: {first_line(error)}") from error
    finally:
        model.train(training)
    return {task: _metrics(entries) for task, entries in evaluated["results"].items()}


def _tasks(spec: HarnessSpec) -> Any:
    """lm-eval's index of tasks: those of the user's folder, and lm-eval's where the folder does not have all."""
    from lm_eval.tasks import TaskManager

    folder = spec.task_folder
    manager = TaskManager(include_path=folder, include_defaults=False) if folder is not None else None
    if manager is None or not set(spec.tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder)
    unknown = [task for task in spec.tasks if not manager.match_tasks([task])]
    if unknown:
        searched = f"neither {folder} nor lm-eval has it" if folder is not None else "lm-eval does not have it"
        raise InputError(f"There is no task {', '.join(unknown)}: {searched}. `lm-eval ls tasks` lists all tasks.")
    return manager


def _metrics(entries: dict[str, Any]) -> dict[str, float]:
    """``{"acc,none": .5}`` of lm-eval as ``{"acc": .5}``; a filter other than none stays in the name."""
    return {
        name.removesuffix(",none").replace(",", "_"): float(value)
        for name, value in entries.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
