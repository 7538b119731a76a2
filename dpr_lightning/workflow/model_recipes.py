"""The recipes of models by hub id in ``configs/``: a table of models, and the configs that are written from it.

``python -m dpr_lightning.workflow.model_recipes`` writes them again, from the options of ``dpr sft`` and ``dpr rl``.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

from dpr_lightning.run_manifest import MANIFEST, RunManifest
from dpr_lightning.workflow.base_model import LORA_RANK, BaseModel
from dpr_lightning.workflow.commented_yaml import commented_yaml
from dpr_lightning.workflow.config_settings import Config, apply_setting
from dpr_lightning.workflow.rl_config import RlOptions, rl_config
from dpr_lightning.workflow.sft_config import SftOptions, sft_config

TRAIN = "data/demonstrations.jsonl"
STEPS = 400
REFERENCE = "0.25"
KINDS = ("sft", "sft_lora", "dpr")


@dataclass(frozen=True)
class ModelRecipe:
    """A model, and what its recipes need.

    Attributes:
        name: folder of its recipes.
        hub_id: of its weights.
        billions: of parameters, to two digits.
        architecture: sizes and peculiarities in the ``config.json`` of ``hub_id``, as options of its config class.
        memory: GiB on each device at the peak of each kind, in the order of ``KINDS``, as `dpr plan` counts them;
            None where it was not counted.
        settings: options of SFT that the model needs, by their dotted names.
        comments: why, by the same names.
    """

    name: str
    hub_id: str
    billions: float
    architecture: dict[str, Any]
    memory: tuple[float | None, float | None, float | None] = (None, None, None)
    settings: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> BaseModel:
        """What the defaults of `dpr sft` follow from."""
        return BaseModel(self.hub_id, round(self.billions * 1e9), "bfloat16")

    @property
    def in_shards(self) -> bool:
        """Whether every weight is trained on several GPUs, because one does not have the memory."""
        return self.base.default_rank is not None

    @property
    def before_dpr(self) -> str:
        """The kind of SFT that Dense-Path REINFORCE goes on from."""
        return "sft" if self.base.is_small else "sft_lora"

    def run(self, kind: str) -> str:
        """Folder of the run of a kind of SFT."""
        return f"runs/{self.name}/{'lora' if kind == 'sft_lora' else 'full'}"


def _llama(hidden: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }
    return {"model_type": "llama", **sizes, **more}


_THINKING = "data.chat_template_kwargs"
_NO_THINKING: dict[str, Any] = {
    "settings": {_THINKING: {"enable_thinking": False}},
    "comments": {_THINKING: "the prompt has an empty <think> block; rows that reason: true"},
}
_QWEN3: dict[str, Any] = {"model_type": "qwen3", "head_dim": 128}
_LLAMA3_PAD: dict[str, Any] = {"model.policy.pad_token": "<|finetune_right_pad_id|>"}
_LLAMA3_COMMENTS = {"model.policy.pad_token": "the tokenizer names none; <|eot_id|>, its EOS, closes turns"}


def _positions(factor: float) -> dict[str, Any]:
    """The rotary positions of Llama 3.1 and 3.2."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {"max_position_embeddings": 131072, "rope_parameters": rope}


MODELS = (
    ModelRecipe(
        "smollm2_135m",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        0.13,
        _llama(576, 1536, 30, 9, 3, 49152),
        (5.1, 8.4, 6.8),
    ),
    ModelRecipe(
        "smollm2_360m",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        0.36,
        _llama(960, 2560, 32, 15, 5, 49152),
        (10.6, 15.1, 14.1),
    ),
    ModelRecipe(
        "smollm2_1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", 1.71, _llama(2048, 8192, 24, 32, 32, 49152)
    ),
    ModelRecipe(
        "qwen2.5_0.5b",
        "Qwen/Qwen2.5-0.5B-Instruct",
        0.49,
        _llama(896, 4864, 24, 14, 2, 151936, model_type="qwen2"),
    ),
    ModelRecipe(
        "qwen3_0.6b", "Qwen/Qwen3-0.6B", 0.60, _llama(1024, 3072, 28, 16, 8, 151936, **_QWEN3), **_NO_THINKING
    ),
    ModelRecipe(
        "qwen3_1.7b", "Qwen/Qwen3-1.7B", 1.72, _llama(2048, 6144, 28, 16, 8, 151936, **_QWEN3), **_NO_THINKING
    ),
    ModelRecipe(
        "qwen3_8b",
        "Qwen/Qwen3-8B",
        8.19,
        _llama(4096, 12288, 36, 32, 8, 151936, **_QWEN3, tie_word_embeddings=False),
        **_NO_THINKING,
    ),
    ModelRecipe(
        "llama3.2_1b",
        "meta-llama/Llama-3.2-1B-Instruct",
        1.24,
        _llama(2048, 8192, 16, 32, 8, 128256, head_dim=64, **_positions(32.0)),
        (19.4, None, None),
        settings={**_LLAMA3_PAD, _THINKING: {"date_string": "26 Jul 2024"}},
        comments={**_LLAMA3_COMMENTS, _THINKING: "else the template writes the day of each run"},
    ),
    ModelRecipe(
        "llama3.1_8b",
        "meta-llama/Llama-3.1-8B-Instruct",
        8.03,
        _llama(
            4096, 14336, 32, 32, 8, 128256,
            **_positions(8.0), tie_word_embeddings=False,
        ),
        settings=_LLAMA3_PAD,
        comments=_LLAMA3_COMMENTS,
    ),
    ModelRecipe(
        "gemma3_1b",
        "google/gemma-3-1b-it",
        1.00,
        _llama(1152, 6912, 26, 4, 1, 262144, model_type="gemma3_text", head_dim=256, sliding_window=512),
        settings={"data.end_of_turn": "<end_of_turn>"},
        comments={"data.end_of_turn": "closes a turn, while the tokenizer's EOS is <eos>"},
    ),
)  # fmt: skip


def write_recipes(folder: Path) -> None:
    """Write all recipes below a folder, such as ``configs``."""
    for model in MODELS:
        for kind in KINDS:
            path = folder / model.name / f"{kind}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(recipe(model, kind), encoding="utf-8")


def table_row(model: ModelRecipe) -> str:
    """The row of a model in the table of docs/recipes.md: names, parameters, SFT before DPR, GiB of each kind."""
    memory = ["–" if count is None else f"{count:.1f}" for count in model.memory]
    cells = [f"`{model.name}`", model.hub_id, f"{model.billions:.2f}", f"`{model.before_dpr}`", *memory]
    return f"| {' | '.join(cells)} |"


def recipe(model: ModelRecipe, kind: str) -> str:
    """The text of a recipe."""
    config = _dpr(model) if kind == "dpr" else _sft(model, kind)
    for section, option in (("model", "seed"), ("data", "seed"), ("trainer", "accelerator")):
        config[section].get("init_args", config[section]).pop(option)  # is the default
    if config["trainer"]["precision"] == "32-true":
        del config["trainer"]["precision"]  # also the default, and it would be a line too many
    config["run"] = {name: value for name, value in config["run"].items() if value is not None}
    return "".join(f"# {line}\n" for line in _heading(model, kind)) + commented_yaml(config, _comments(model, kind))


def _sft(model: ModelRecipe, kind: str) -> Config:
    rank = LORA_RANK if kind == "sft_lora" else 0
    options = SftOptions(model=model.hub_id, train=TRAIN, output=model.run(kind), lora=rank)
    config, _ = sft_config(options, model.base)
    if not model.base.is_small:
        apply_setting(config, "model.policy.gradient_checkpointing", True)
    for option, value in model.settings.items():
        apply_setting(config, option, value)
    trainer = config["trainer"]
    del trainer["max_epochs"]
    config["trainer"] = {"max_steps": STEPS, **trainer, "check_val_every_n_epoch": None, "val_check_interval": 100}
    if kind == "sft" and model.in_shards:
        strategy = {"class_path": "dpr_lightning.strategies.Zero3Strategy"}
        config["trainer"] |= {"devices": 8, "strategy": strategy, "precision": "bf16-mixed"}
    return config


@dataclass(frozen=True)
class _PlannedRun(RunManifest):
    """The manifest of a run that a recipe describes and nothing has run yet."""

    @property
    def sft(self) -> str:
        return str(self.folder / "sft/policies/final")

    @property
    def references(self) -> dict[str, str]:
        return {REFERENCE: str(self.folder / f"sft/policies/step_{round(float(REFERENCE) * STEPS):07d}")}


def _dpr(model: ModelRecipe) -> Config:
    run = model.run(model.before_dpr)
    policy = _sft(model, model.before_dpr)["model"]["init_args"]["policy"]
    policy.pop("pad_token", None)  # is saved with the policy
    entry = {"policy": policy, "train": TRAIN, "held_out": f"{run}/held_out.jsonl"}
    config, _ = rl_config(_PlannedRun(Path(run) / MANIFEST, {"sft": entry}), None, RlOptions())
    config["data"]["init_args"].pop("columns", None)
    return config


def _heading(model: ModelRecipe, kind: str) -> list[str]:
    title = model.hub_id.rpartition("/")[2]
    what = {
        "sft": f"Supervised fine-tuning of every weight of {title}",
        "sft_lora": f"Supervised fine-tuning of {title} with LoRA",
        "dpr": f"Dense-Path REINFORCE of {title}, after its {model.before_dpr}",
    }[kind]
    gpus = "8 GPUs by DeepSpeed ZeRO-3" if kind == "sft" and model.in_shards else "a GPU"
    amount = "40 steps of 16 answers" if kind == "dpr" else f"{STEPS} steps of 8 demonstrations"
    memory = model.memory[KINDS.index(kind)]
    counted = "" if memory is None else f", {memory:.1f} GiB" + " each" * (gpus != "a GPU")
    text = f"{what}: {amount}{counted} on {gpus}."
    return [*wrap(text, 118), f"  dpr fit --config configs/{model.name}/{kind}.yaml"]


def _comments(model: ModelRecipe, kind: str) -> dict[str, str]:
    dtype = "as saved, bfloat16; float32 on a CPU without instructions for it"
    if kind == "dpr":
        return {
            "model.policy.dtype": dtype,
            "model.estimator": "exact over the vocabulary",
            "model.credit": "γ",
            "model.kl": "β, nats of reward per nat of KL",
            "data.prompts": "completions are not read",
            "data.exclude": "its prompts were held out of SFT",
            "data.references": "at a quarter of SFT",
            "data.sampling": "tokens; answers sampled at once",
            "trainer.max_steps": "optimizer steps",
            "trainer.accumulate_grad_batches": "micro-batches a rollout",
        }
    adapters = {"model.policy.lora": "the update is scaled by alpha / rank"} if kind == "sft_lora" else {}
    return {
        "model.policy.dtype": dtype,
        **adapters,
        **model.comments,
        "data.train": "yours: --data.train FILE; rows of any form in docs/data.md",
        "data.validation": "some of the prompts of `train` are held out",
        "data.max_length": "tokens, prompt included",
        "data.batch_size": "demonstrations a step on each device",
        "trainer.max_steps": "optimizer steps",
        "trainer.val_check_interval": "steps between validations",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Write the recipes of models by hub id; print rows of docs/recipes.md."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("configs"))
    write_recipes(parser.parse_args().folder)
    print("\n".join(map(table_row, MODELS)))
