"""Recipes of models by hub id: they are what the table writes, and each trains its own architecture, at tiny size."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from dpr_lightning.cli.main import main
from dpr_lightning.run_manifest import RunManifest
from dpr_lightning.workflow.model_recipes import KINDS, MODELS, ModelRecipe, recipe, table_row
from tests.tiny import tiny_tokenizer
from tests.workspace import write_rows

CONFIGS = Path(__file__).parents[2] / "configs"
CHATML = "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
BEGIN = "<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"
# As Qwen3's: the last turn has its reasoning, and the prompt has an empty one where thinking is off.
QWEN3 = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n"
    f"{{% if turn.role == 'assistant' and loop.last %}}{EMPTY}{{% endif %}}"
    "{{ turn.content }}<|im_end|>\n{% endfor %}"
    f"{{% if add_generation_prompt %}}{BEGIN}"
    f"{{% if enable_thinking is defined and not enable_thinking %}}{EMPTY}{{% endif %}}{{% endif %}}"
)
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA3 = (
    f"<|begin_of_text|>{HEADER.format('system')}date {{{{ date_string or 'none' }}}}<|eot_id|>"
    f"{{% for turn in messages %}}{HEADER.format('{{ turn.role }}')}{{{{ turn.content }}}}<|eot_id|>{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{HEADER.format('assistant')}{{% endif %}}"
)
GEMMA = (
    "{% for turn in messages %}<start_of_turn>{{ 'model' if turn.role == 'assistant' else turn.role }}\n"
    "{{ turn.content }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
WITH_PROMPT = f"{CHATML}{{% if add_generation_prompt %}}{BEGIN}{{% endif %}}"
# Template, tokens, EOS and pad of each family.
FAMILIES: dict[str, tuple[str, list[str], str, str | None]] = {
    "smollm2": (WITH_PROMPT, ["<|im_start|>", "<|im_end|>"], "<|im_end|>", "<|im_end|>"),
    "qwen2.5": (WITH_PROMPT, ["<|im_start|>", "<|im_end|>"], "<|im_end|>", "<pad>"),
    "qwen3": (QWEN3, ["<|im_start|>", "<|im_end|>", "<think>", "</think>"], "<|im_end|>", "<pad>"),
    "llama3": (
        LLAMA3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|finetune_right_pad_id|>"],
        "<|eot_id|>",
        None,
    ),
    "gemma3": (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "<eos>", "<pad>"),
}
FAST = ("qwen3_0.6b", "llama3.2_1b")
names = [model.name for model in MODELS]


def test_the_recipes_are_what_the_table_writes() -> None:
    page = (CONFIGS.parent / "docs" / "recipes.md").read_text(encoding="utf-8").splitlines()
    for model in MODELS:
        assert table_row(model) in page, "run `make recipes`, which prints the rows of the table."
        assert sorted(path.stem for path in (CONFIGS / model.name).iterdir()) == sorted(KINDS)
        for kind in KINDS:
            path = CONFIGS / model.name / f"{kind}.yaml"
            text = path.read_text(encoding="utf-8")
            assert text == recipe(model, kind), f"{path}: run `make recipes`."
            lines = text.splitlines()
            assert len(lines) <= 40
            assert max(map(len, lines)) <= 120
            assert yaml.safe_load(text)["trainer"]["max_steps"] > 0


@pytest.mark.parametrize("model", MODELS, ids=names)
def test_the_sizes_have_the_parameters_that_the_model_has(model: ModelRecipe) -> None:
    with torch.device("meta"):
        built: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model.architecture))
    assert round(sum(weight.numel() for weight in built.parameters()) / 1e9, 2) == model.billions


@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=() if model.name in FAST else pytest.mark.slow) for model in MODELS], ids=names
)
def test_a_recipe_trains_its_architecture(model: ModelRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny(model, Path("base"))
    rows = [{"prompt": f"{a}+{b}=", "completion": f"{a + b}"} for a in range(8) for b in range(8)]
    write_rows(Path("mine.jsonl"), rows)
    less = ["--trainer.enable_progress_bar=false", "--run.wandb=false"]

    run = Path(model.run(model.before_dpr))
    sft = f"fit --config recipe:{model.name}/{model.before_dpr} --data.train mine.jsonl --trainer.max_steps 2"
    assert main([*sft.split(), "--model.policy.source=base", *less]) == 0
    assert losses(run / "sft") == [0, 1]
    policies = run / "sft" / "policies"
    tokenizer = AutoTokenizer.from_pretrained(policies / "final")
    closing = model.settings.get("data.end_of_turn", tokenizer.eos_token)
    stops = GenerationConfig.from_pretrained(policies / "final").eos_token_id
    assert tokenizer.convert_tokens_to_ids(closing) in ([stops] if isinstance(stops, int) else stops)
    assert tokenizer.pad_token == model.settings.get("model.policy.pad_token", tokenizer.pad_token)
    assert tokenizer.pad_token != closing

    dpr = f"fit --config recipe:{model.name}/dpr --data.prompts mine.jsonl --data.sampling.max_new_tokens 4"
    references = f"--data.references=[{policies}/step_0000001]"
    assert main([*dpr.split(), references, "--trainer.max_steps=1", *less]) == 0
    assert losses(run / "rl") == [0]
    assert RunManifest.load(run).policy == str(run / "rl" / "policies" / "final")


def losses(folder: Path) -> list[int]:
    """The steps with a finite loss of training."""
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    assert all(math.isfinite(float(row["train/loss"])) for row in rows)
    return [int(row["step"]) for row in rows]


def write_tiny(model: ModelRecipe, folder: Path) -> None:
    """A random model with the peculiarities of an architecture at small sizes, and a tokenizer of its family."""
    template, tokens, eos, pad = next(family for name, family in FAMILIES.items() if model.name.startswith(name))
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.chat_template, tokenizer.eos_token, tokenizer.pad_token = template, eos, pad
    tokenizer.save_pretrained(folder)
    original = model.architecture
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes["num_key_value_heads"] = max(1, 4 * original["num_key_value_heads"] // original["num_attention_heads"])
    sizes |= {name: 16 for name in ("head_dim", "sliding_window") if name in original}
    layers = {"layer_types": ["sliding_attention", "full_attention"]} if "sliding_window" in original else {}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(**(original | sizes | layers | special | {"vocab_size": len(tokenizer)}))
    built: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    built.save_pretrained(folder)
