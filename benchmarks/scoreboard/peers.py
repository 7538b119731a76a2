"""The other side: TRL, and plain transformers. Runs in a separate environment, without this package.

python -m benchmarks.scoreboard.peers WORKLOAD VARIANT FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import selective_log_softmax

from benchmarks.scoreboard.gate import Gate, begin_after_prefill
from benchmarks.scoreboard.gradients import write_gradients
from benchmarks.scoreboard.workloads import Workload

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMMON: dict[str, Any] = {
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 1,
    "num_train_epochs": 1,
    "use_cpu": DEVICE == "cpu",
}


class _Turns(TrainerCallback):
    """Takes a turn of the gate for each step; writes the gradient of the first to a file."""

    def __init__(self, gate: Gate, gradient_file: Path | None = None) -> None:
        self.gate, self.gradient_file = gate, gradient_file
        self.first: dict[str, Tensor] = {}
        self.losses: list[float] = []
        self.acted = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.gate.wait()

    def on_pre_optimizer_step(self, _args: Any, state: Any, _control: Any, **arguments: Any) -> None:
        if state.global_step == 0 and self.gradient_file is not None:
            tokens, labels = self.first["input_ids"], self.first["labels"]
            write_gradients(self.gradient_file, arguments["model"], tokens, labels != -100, self.losses[0])

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.gate.done(acted=self.acted)
        self.acted = 0


def _watch_loss(trainer: Any, turns: _Turns) -> None:
    """Record the first batch and its loss, as the trainer computes it."""
    plain = trainer.compute_loss

    def watched(model: Any, inputs: dict[str, Tensor], *arguments: Any, **named: Any) -> Any:
        if not turns.first:
            turns.first = {name: inputs[name].clone() for name in ("input_ids", "labels")}
        result = plain(model, inputs, *arguments, **named)
        if not turns.losses:
            turns.losses.append(float(result[0] if isinstance(result, tuple) else result))
        return result

    trainer.compute_loss = watched


def _rows(folder: Path, name: str) -> tuple[list[list[int]], list[list[int]]]:
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft")
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    return prompts, [[*tokenizer(row["completion"])["input_ids"], 1] for row in rows]


def _labelled(folder: Path) -> Dataset:
    """Token ids, with the prompt left out of the loss."""
    prompts, completions = _rows(folder, "sft")
    return Dataset.from_dict(
        {
            "input_ids": [[*prompt, *rest] for prompt, rest in zip(prompts, completions, strict=True)],
            "labels": [[-100] * len(prompt) + rest for prompt, rest in zip(prompts, completions, strict=True)],
        }
    )


def train_sft(gate: Gate, folder: Path, work: Workload, variant: dict[str, Any]) -> None:
    """C1 in TRL's SFTTrainer, or in transformers' Trainer."""
    turns = _Turns(gate, folder / f"{variant['name']}.safetensors")
    settings = {**COMMON, "output_dir": str(folder / "out"), "per_device_train_batch_size": work.rows}
    settings["bf16"] = work.dtype == "bfloat16"  # autocast over float32 weights
    tokenizer, data = AutoTokenizer.from_pretrained(folder / "sft"), _labelled(folder)
    trainer: Any
    if variant.get("plain"):
        model = AutoModelForCausalLM.from_pretrained(folder / "sft", dtype=torch.float32)
        arguments = TrainingArguments(**settings)
        collate = DataCollatorForSeq2Seq(tokenizer)
        trainer = Trainer(model, arguments, data_collator=collate, train_dataset=data, callbacks=[turns])
    else:
        # TRL takes the mask of learnt tokens as a separate column.
        mask = [[int(label != -100) for label in labels] for labels in data["labels"]]
        data = data.remove_columns("labels").add_column("completion_mask", mask)
        config = SFTConfig(**settings, max_length=work.length, completion_only_loss=True, **variant["settings"])
        trainer = SFTTrainer(
            str(folder / "sft"), config, train_dataset=data, processing_class=tokenizer, callbacks=[turns]
        )
    _watch_loss(trainer, turns)
    trainer.train()


def _frozen(folder: Path, work: Workload) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=work.dtype).eval().to(DEVICE)


@torch.no_grad()
def _logprobs(model: Any, tokens: Tensor, acted: int) -> Tensor:
    """Log-probabilities of the last ``acted`` tokens, with logits for those alone, as TRL computes them."""
    logits = model(input_ids=tokens, logits_to_keep=acted + 1, use_cache=False).logits[:, :-1]
    return selective_log_softmax(logits, tokens[:, -acted:])


def score(gate: Gate, folder: Path, work: Workload, variant: dict[str, Any]) -> None:
    """C2: one forward pass and TRL's log-softmax of the completion's tokens."""
    model = _frozen(folder / "sft", work)
    prompts, completions = _rows(folder, "score")
    tokens = torch.tensor([prompt + rest for prompt, rest in zip(prompts, completions, strict=True)], device=DEVICE)
    gate.wait()
    at_once = variant["rows"]
    for start in range(0, len(tokens), work.rows):
        parts = tokens[start : start + work.rows].split(at_once)
        gate.done(sum=sum(float(_logprobs(model, part, work.completion).float().sum()) for part in parts))


@torch.no_grad()
def decode(gate: Gate, folder: Path, work: Workload, variant: dict[str, Any]) -> None:
    """C3: `generate`; a turn is one token a row, then all of them."""
    model = _frozen(folder / "sft", work)
    prompts, _ = _rows(folder, "decode")
    begin_after_prefill(model, gate)
    gate.wait()
    for start in range(0, len(prompts), work.rows):
        tokens = torch.tensor(prompts[start : start + work.rows], device=DEVICE)
        result = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=True,
            top_k=0,
            max_new_tokens=work.completion,
            min_new_tokens=work.completion,
            **variant["settings"],
        )
        gate.done(acted=result.numel() - tokens.numel())


def train_dpr(gate: Gate, folder: Path, work: Workload, variant: dict[str, Any]) -> None:
    """C4: RLOO, whose reward is the sum of log π_SFT − log π_ref over a completion."""
    turns = _Turns(gate)
    frozen = [_frozen(folder / name, work) for name in ("sft", "reference")]
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft")

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        turns.acted += sum(map(len, completion_ids))
        result = []
        for prompt, completion in zip(prompts, completion_ids, strict=True):
            tokens = torch.tensor([[*tokenizer(prompt)["input_ids"], *completion]], device=DEVICE)
            logprob = [_logprobs(model, tokens, len(completion)).float() for model in frozen]
            result.append(float((logprob[0] - logprob[1]).sum()))
        return result

    def reward_in_batches(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        if len({len(completion) for completion in completion_ids}) > 1:
            return reward(prompts, completion_ids)
        turns.acted += sum(map(len, completion_ids))
        result: list[float] = []
        for start in range(0, len(prompts), 16):
            part = range(start, min(len(prompts), start + 16))
            rows = [[*tokenizer(prompts[index])["input_ids"], *completion_ids[index]] for index in part]
            tokens = torch.tensor(rows, device=DEVICE)
            logprob = [_logprobs(model, tokens, work.completion).float() for model in frozen]
            result += (logprob[0] - logprob[1]).sum(1).tolist()
        return result

    config = RLOOConfig(
        **COMMON,
        output_dir=str(folder / "out"),
        per_device_train_batch_size=work.rows // work.micro_batches,
        gradient_accumulation_steps=work.micro_batches,
        num_generations=work.samples,
        max_completion_length=work.completion,
        generation_kwargs={"min_new_tokens": work.completion},
        beta=0.0,
        bf16=work.dtype == "bfloat16",
        **variant["settings"],
    )
    rows = [json.loads(line) for line in (folder / "dpr.jsonl").read_text().splitlines()]
    RLOOTrainer(
        str(folder / "sft"),
        reward_in_batches if variant["batched"] else reward,
        config,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
        processing_class=tokenizer,
        callbacks=[turns],
    ).train()


TUNED: dict[str, Any] = {"gradient_checkpointing": False}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {
        "trl": {"settings": {}},
        "trl_tuned": {"settings": {**TUNED, "loss_type": "chunked_nll"}},
        "transformers": {"plain": True},
    },
    "score": {"trl": {"rows": 16}, "trl_tuned": {"rows": 4}},
    "decode": {"transformers": {"settings": {}}, "static": {"settings": {"cache_implementation": "static"}}},
    "dpr": {"trl": {"settings": {}, "batched": False}, "trl_tuned": {"settings": TUNED, "batched": True}},
}
WORK = {"sft": train_sft, "score": score, "decode": decode, "dpr": train_dpr}


if __name__ == "__main__":
    _, workload, side, where = sys.argv
    described = Workload.read(Path(where) / f"{workload}.json")
    WORK[workload](Gate(), Path(where), described, VARIANTS[workload][side] | {"name": side})
