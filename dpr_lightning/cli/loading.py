"""Console, progress bar, policies and verifiers, for all commands."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.ground_truth import Verifier
from dpr_lightning.evaluation.verifiers import load_verifier
from dpr_lightning.policies import PolicySpec, build_policy

# A pipe or a log file has no width, and tables need one.
console = Console() if sys.stdout.isatty() else Console(width=120)


def best_device() -> torch.device:
    """A GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def frozen_policy(folder: str, dtype: str = "float32") -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A policy for inference, adapters merged, on the best device."""
    spec = PolicySpec(source=folder, dtype=dtype)  # type: ignore[arg-type]
    model, tokenizer = build_policy(spec, trainable=False)
    return model.to(best_device()), tokenizer


def verifier_named(name: str | None) -> Verifier | None:
    """The verifier of that name; None for None."""
    return load_verifier(name) if name is not None else None


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Any]:
    """Show a progress bar, and yield a function that is called with the number of items done since the last call."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.update(task, advance=count)
