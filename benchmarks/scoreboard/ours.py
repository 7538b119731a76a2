"""This package's side of the scoreboard: `python -m benchmarks.scoreboard.ours WORKLOAD VARIANT FOLDER`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from benchmarks.scoreboard.gate import Gate
from benchmarks.scoreboard.gradients import write_gradients
from benchmarks.scoreboard.workloads import Workload
from dpr_lightning.data import DemonstrationDataModule, RewardDataModule
from dpr_lightning.engine import sequence_logprobs
from dpr_lightning.engine.host_memory import retain_freed_memory
from dpr_lightning.modules import CreditSpec, DensePathReinforce, KLSpec, SupervisedIRL
from dpr_lightning.policies import PolicySpec, build_policy
from dpr_lightning.rewards import RewardSpec
from dpr_lightning.rollouts import SamplingOptions, sample

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class _Turns(Callback):
    """Takes a turn of the gate for each step; writes the first batch and its gradient to a file."""

    def __init__(self, gate: Gate, gradient_file: Path | None = None) -> None:
        self.gate, self.gradient_file = gate, gradient_file
        self.tokens = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.gate.wait()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 0 and self.gradient_file is not None:
            loss = float(trainer.callback_metrics["train/nll"])
            write_gradients(self.gradient_file, pl_module.policy, self.batch.tokens, self.batch.mask, loss)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch, self.step = batch, trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.tokens += float(batch.mask.sum())
        if trainer.global_step > self.step:
            self.gate.done(acted=self.tokens)
            self.tokens = 0.0


def _policy(folder: Path, work: Workload, side: str) -> PolicySpec:
    """In half precision the optimizer steps float32 copies."""
    recomputes = side == "ours_recomputing"
    return PolicySpec(source=str(folder / "sft"), dtype=work.dtype, gradient_checkpointing=recomputes)  # type: ignore[arg-type]


def _trainer(callback: Callback, work: Workload) -> Trainer:
    return Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=1,
        accumulate_grad_batches=work.micro_batches,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)


def train_sft(gate: Gate, folder: Path, work: Workload, side: str) -> None:
    """C1 through the Trainer, as `dpr fit` runs it."""
    data = DemonstrationDataModule(
        str(folder / "sft.jsonl"),
        batch_size=work.rows,
        max_length=work.length,
        cache_dir=str(folder / "cache"),
        validation=None,
    )
    module = SupervisedIRL(_policy(folder, work, side), optimizer=_optimizer)
    _trainer(_Turns(gate, folder / f"{side}.safetensors"), work).fit(module, data)


def train_dpr(gate: Gate, folder: Path, work: Workload, side: str) -> None:
    """C4: rollout, two frozen models, one optimizer step."""
    data = RewardDataModule(
        str(folder / "dpr.jsonl"),
        sft=str(folder / "sft"),
        references=[str(folder / "reference")],
        reward=RewardSpec(form={"log_ratio": 1.0}),
        sampling=SamplingOptions(max_new_tokens=work.completion, batch_size=work.rows),
        samples_per_prompt=work.samples,
        prompts_per_rollout=work.rows // work.samples,
        dtype=work.dtype,
    )
    module = DensePathReinforce(
        _policy(folder, work, side),
        optimizer=_optimizer,
        estimator="reinforce",
        credit=CreditSpec(discount=1.0, baseline="leave_one_out"),
        kl=KLSpec(coefficient=1.0),
    )
    _trainer(_Turns(gate), work).fit(module, data)


def _rows(folder: Path, name: str, tokenizer: Any) -> tuple[list[list[int]], list[list[int]]]:
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    return prompts, [tokenizer(row["completion"])["input_ids"] + [1] for row in rows]


def score(gate: Gate, folder: Path, work: Workload, side: str) -> None:
    """C2: log-probabilities of given completions."""
    model, tokenizer = build_policy(_policy(folder, work, side), trainable=False)
    model.to(DEVICE)
    prompts, completions = _rows(folder, "score", tokenizer)
    tokens = torch.tensor([prompt + rest for prompt, rest in zip(prompts, completions, strict=True)], device=DEVICE)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, work.prompt :] = True
    gate.wait()
    for start in range(0, len(tokens), work.rows):
        rows = slice(start, start + work.rows)
        with torch.no_grad():
            result: Tensor = sequence_logprobs(model, tokens[rows], mask[rows])
        gate.done(sum=float(result.sum()))


def decode(gate: Gate, folder: Path, work: Workload, side: str) -> None:
    """C3: the clock starts after the prefill."""
    model, tokenizer = build_policy(_policy(folder, work, side), trainable=False)
    model.to(DEVICE)
    prompts, _ = _rows(folder, "decode", tokenizer)
    options = SamplingOptions(max_new_tokens=work.completion, batch_size=work.rows)
    calls: list[int] = []

    def before_a_token() -> bool:
        """Called before each token; a hook on the model would turn the one-token pass off."""
        if not calls:
            gate.begin()
        calls.append(1)
        return False

    gate.wait()
    for start in range(0, len(prompts), work.rows):
        calls.clear()
        rows = prompts[start : start + work.rows]
        result = sample(model, rows, options, stop_tokens=[], pad_token=0, seed=start, unwanted=before_a_token)
        gate.done(acted=int(result.mask.sum()))


WORK = {"sft": train_sft, "score": score, "decode": decode, "dpr": train_dpr}


if __name__ == "__main__":
    retain_freed_memory()  # as `dpr` does
    _, workload, side, where = sys.argv
    WORK[workload](Gate(), Path(where), Workload.read(Path(where) / f"{workload}.json"), side)
