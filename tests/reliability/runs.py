"""Two short trainings with everything that a run leaves behind, and a comparison of what two runs left."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, Trainer

from tests.tiny import write_tiny_policy
from tests.training import write_weaker_policy

STAGES = ("sft", "dpr")
# These have times, checksums of files with times, or the command, which is another where it limits the time;
# `.metadata` has a name that PyTorch generates for each checkpoint.
UNLIKE = {"manifest.json", "config.yaml", ".metadata", "hparams.yaml", "run.json"}
# Lightning counts a validation twice when it goes on from where one was due; nothing reads this count.
UNREAD = ".val_loop.batch_progress"


def write_inputs(folder: Path) -> None:
    """A policy, a weaker one, 40 demonstrations and 6 that are held out."""
    write_tiny_policy(folder / "policy")
    write_weaker_policy(folder / "policy", folder / "reference")
    for name, signs, count in (("rows", "+*", 20), ("held", "-", 6)):
        rows = [
            {"prompt": f"{n} {sign} {n} =", "completion": "Answer: " + "9" * (1 + 3 * (n % 4)), "answer": "9"}
            for sign in signs
            for n in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_configs(inputs: Path, output: Path, **trainer: Any) -> dict[str, Path]:
    """The configs of both stages, which write to ``output``: accumulation, clipping, rollouts that serve three steps.

    SFT keeps an average of weights and drops nothing; DPR adapts β. ``trainer`` are further options of both.
    """
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.01}}
    policy = {"source": str(inputs / "policy")}
    sft = {
        "model": {
            "class_path": "dpr_lightning.modules.SupervisedIRL",
            "init_args": {"policy": policy, "optimizer": optimizer},
        },
        "data": {
            "class_path": "dpr_lightning.data.DemonstrationDataModule",
            "init_args": {
                "train": str(inputs / "rows.jsonl"),
                "validation": str(inputs / "held.jsonl"),
                "batch_size": 3,
                "cache_dir": str(output / "cache"),
            },
        },
    }
    dpr = {
        "model": {
            "class_path": "dpr_lightning.modules.DensePathReinforce",
            "init_args": {
                "policy": policy,
                "estimator": "all_actions",
                "credit": {"discount": 0.5, "baseline": "position"},
                "kl": {"coefficient": 0.5, "target": 0.05},
                "optimizer": optimizer,
            },
        },
        "data": {
            "class_path": "dpr_lightning.data.RewardDataModule",
            "init_args": {
                "prompts": str(inputs / "rows.jsonl"),
                "held_out": str(inputs / "held.jsonl"),
                "sft": str(inputs / "policy"),
                "references": [str(inputs / "reference")],
                "sampling": {"max_new_tokens": 12},
                "samples_per_prompt": 2,
                "prompts_per_rollout": 6,
                "refresh_every": 3,
            },
        },
    }
    evaluation = {"prompts": str(inputs / "held.jsonl"), "verifier": "answer", "max_new_tokens": 8, "every_n_steps": 7}
    callbacks = {
        "sft": [callback("GenerationEvaluation", **evaluation)],
        "dpr": [
            callback("RolloutSamples", every_n_rollouts=2, verifier="answer"),
            callback("HeldOutReward", every_n_steps=5),
        ],
    }
    validation = {"sft": {"check_val_every_n_epoch": None, "val_check_interval": 8}, "dpr": {"max_epochs": -1}}
    paths = {}
    for name, config in (("sft", sft), ("dpr", dpr)):
        folder = output / name
        saved = callback(
            "ReferenceCheckpoints",
            folder=str(folder / "policies"),
            fractions=[0.3, 0.6],
            ema_decay=0.9 if name == "sft" else None,
        )
        config["seed_everything"] = 0  # type: ignore[assignment]
        config["trainer"] = {
            "max_steps": 30,
            "accumulate_grad_batches": 2,
            "accelerator": "cpu",
            "devices": 1,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "default_root_dir": str(folder),
            "logger": [
                {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": str(folder), "name": "", "version": ""},
                }
            ],
            "callbacks": [
                saved,
                *callbacks[name],
                callback("ResumableCheckpoints", folder=str(folder / "checkpoints"), every_n_steps=4),
            ],
            **validation[name],
            **trainer,
        }
        output.mkdir(parents=True, exist_ok=True)
        paths[name] = output / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(config, sort_keys=False))
    return paths


def callback(name: str, **options: Any) -> dict[str, Any]:
    """An entry of a config."""
    return {"class_path": f"dpr_lightning.callbacks.{name}", "init_args": options}


class Preemption(Callback):
    """Sends this process the signal of a scheduler that wants the machine back."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """In the middle of a step's micro-batches, and once."""
        if trainer.global_step == self.at and trainer.fit_loop._should_accumulate():
            os.kill(os.getpid(), signal.SIGTERM)


def differences(clean: Path, other: Path) -> list[str]:
    """Where two runs of a stage left something else; bits count, times do not.

    A run that was asked to stop has saved a checkpoint that the other lacks, and may have let an older one go for it.
    """
    result = []
    names = {path.relative_to(folder) for folder in (clean, other) for path in folder.rglob("*") if path.is_file()}
    for name in sorted(names):
        first, second = clean / name, other / name
        between = name.parts[0] == "checkpoints" and name.parts[1] != "step_0000030"
        if name.name in UNLIKE or (between and not (first.is_file() and second.is_file())):
            continue
        if not (first.is_file() and second.is_file()):
            result.append(f"{name} is missing in {other if first.is_file() else clean}")
        elif name.suffix in (".ckpt", ".pt"):
            states = (torch.load(path, weights_only=False, map_location="cpu") for path in (first, second))
            result += [f"{name}{index}" for index in unlike(*states)]
        elif first.read_bytes() != second.read_bytes():
            result.append(str(name))
    return result


def unlike(first: Any, second: Any, path: str = "") -> list[str]:
    """Places in which two states differ."""
    if path.endswith(UNREAD):
        return []
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [path]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{path}: {sorted(map(str, first.keys() ^ second.keys()))}"]
        return [part for key in first for part in unlike(first[key], second[key], f"{path}.{key}")]
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [f"{path}: {len(first)} and {len(second)} entries"]
        pairs = enumerate(zip(first, second, strict=True))
        return [part for number, (one, two) in pairs for part in unlike(one, two, f"{path}[{number}]")]
    return [] if first == second or type(first).__module__ != "builtins" else [f"{path}: {first} and {second}"]
