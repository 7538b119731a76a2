"""Training runs small enough for a unit test: a quiet trainer, a weaker policy, prompts and demonstrations."""

import json
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import Callback

from dpr_lightning.policies import LoraSpec, PolicySpec, build_policy, save_policy

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def quiet_trainer(folder: Path, **options: Any) -> lightning.Trainer:
    """A trainer on the CPU that writes and says nothing."""
    return lightning.Trainer(**(QUIET | {"default_root_dir": folder} | options))


def write_weaker_policy(source: Path | str, folder: Path, *, noise: float = 0.05, seed: int = 1) -> str:
    """Write the policy in ``source`` with noise on its weights into ``folder``."""
    spec = PolicySpec(source=str(source))
    model, tokenizer = build_policy(spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(noise * torch.randn(weight.shape, generator=generator))
    return str(save_policy(model, tokenizer, folder, spec))


def write_adapter(source: Path | str, folder: Path, *, noise: float = 0.1, seed: int = 1, rank: int = 2) -> str:
    """Write an adapter of rank ``rank`` that changes the policy in ``source`` into ``folder``."""
    spec = PolicySpec(source=str(source), lora=LoraSpec(rank=rank, alpha=2.0 * rank))
    model, tokenizer = build_policy(spec, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.add_(noise * torch.randn(weight.shape, generator=generator))
    return str(save_policy(model, tokenizer, folder, spec))


def write_prompts(path: Path, count: int = 12) -> str:
    """Sums, with the answer that a verifier reads."""
    rows = [{"prompt": f"{n} + {n * n} =", "answer": str(n + n * n)} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_demonstrations(path: Path, count: int = 8) -> str:
    """Answers of uneven length."""
    rows = [{"prompt": f"{n} - 1 =", "completion": "Answer: " + "9" * (1 + 3 * (n % 3))} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Metrics(Callback):
    """Keeps the metrics after every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Copy the metrics."""
        if not trainer.fit_loop._should_accumulate():
            self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})
