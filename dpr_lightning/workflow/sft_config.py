"""The config of `dpr sft`: supervised fine-tuning of a model on a file of demonstrations."""

from dataclasses import dataclass
from pathlib import Path

from dpr_lightning.data import Rows
from dpr_lightning.errors import InputError
from dpr_lightning.policies import AUTO, LoraSpec
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.run_manifest import MANIFEST
from dpr_lightning.workflow.base_model import BaseModel, check_rank
from dpr_lightning.workflow.config_settings import Config

SFT = "sft"


@dataclass(frozen=True)
class SftOptions:
    """Options of `dpr sft`.

    Attributes:
        model: hub id or folder.
        train: demonstrations.
        output: folder of the run.
        validation: rows of another file; ``auto``: some of the prompts of ``train``; None: none.
        columns: the files' own names of our columns.
        epochs: passes over the demonstrations.
        learning_rate: None: 1e-4 below 1B parameters and 2e-5 above; adapters ten times that.
        lora: rank of adapters; 0: every parameter; None: adapters from 3B parameters on.
        trim: whether tokens that look wrong are hardly learnt, with the limits of ``TrimSpec``.
        max_length: tokens of the longest demonstration; longer ones are dropped and counted.
        batch_size: demonstrations an optimizer step on each device.
        dtype: ``auto``: as the weights are saved, where this machine computes in it.
        verifier: name of what scores answers in later commands.
        seed: of order and adapters.
        limit: read only so many rows.
    """

    model: str
    train: Rows
    output: str
    validation: Rows | None = "auto"
    columns: dict[str, str] | None = None
    epochs: float = 3
    learning_rate: float | None = None
    lora: int | None = None
    trim: bool = False
    max_length: int = 1024
    batch_size: int = 8
    dtype: Dtype = AUTO
    verifier: str | None = None
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in (("epochs", self.epochs), ("max_length", self.max_length), ("batch_size", self.batch_size)):
            if value <= 0:
                raise InputError(f"`--{name}` must be above 0; found {value:g}.")


def sft_config(options: SftOptions, model: BaseModel) -> tuple[Config, list[str]]:
    """The config of `dpr fit`, and a line on each choice that depends on the model or the machine.

    Raises:
        InputError: a rank below 0.
    """
    rank = model.default_rank if options.lora is None else options.lora or None
    if rank is not None:
        check_rank(rank)
    dtype, reason = model.dtype() if options.dtype == AUTO else (options.dtype, "as requested")
    rate = options.learning_rate
    if rate is None:
        rate = (1e-4 if model.is_small else 2e-5) * (10 if rank is not None else 1)
    policy: Config = {"source": options.model, "dtype": options.dtype}
    trained = "all weights are trained"
    if rank is not None:
        policy["lora"] = {"rank": rank, "alpha": 2.0 * rank, "target_modules": LoraSpec.target_modules}
        trained = f"adapters of rank {rank} are trained (--lora 0 trains all weights)"
    data: Config = {
        "train": options.train,
        "validation": options.validation,
        "columns": options.columns,
        "max_length": options.max_length,
        "over_length": "drop",
        "batch_size": options.batch_size,
        "seed": options.seed,
        "limit": options.limit,
    }
    if options.validation == "auto":
        data["held_out_file"] = str(Path(options.output) / "held_out.jsonl")
    config: Config = {
        "seed_everything": options.seed,
        "model": {
            "class_path": "dpr_lightning.modules.SupervisedIRL",
            "init_args": {
                "policy": policy,
                "loss": "sft",
                **({"trim": {}} if options.trim else {}),
                "optimizer": {
                    "class_path": "torch.optim.AdamW",
                    "init_args": {"lr": rate, "betas": [0.9, 0.95], "weight_decay": 0.0},
                },
                "schedule": {"kind": "cosine", "warmup_fraction": 0.06},
                "seed": options.seed,
            },
        },
        "data": {
            "class_path": "dpr_lightning.data.DemonstrationDataModule",
            "init_args": {name: value for name, value in data.items() if value is not None or name == "validation"},
        },
        "trainer": {
            **_length(options.epochs),
            "accelerator": "auto",
            "devices": 1,
            "precision": "32-true",
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "default_root_dir": str(Path(options.output) / SFT),
        },
        "run": {"manifest": str(Path(options.output) / MANIFEST), "verifier": options.verifier},
    }
    lines = [
        f"{model.describe()}: {trained}, in {dtype} ({reason}).",
        f"Learning rate {rate:g}, {options.batch_size} demonstrations a step, {options.epochs:g} epochs.",
    ]
    return config, lines


def _length(epochs: float) -> Config:
    """Options of the trainer for so many epochs; below one, a part of the first."""
    if epochs < 1:
        return {"max_epochs": 1, "limit_train_batches": epochs}
    if epochs != int(epochs):
        raise InputError(
            f"`--epochs` is a whole number, or below 1; found {epochs:g}. Steps: --set trainer.max_steps=N."
        )
    return {"max_epochs": int(epochs)}
