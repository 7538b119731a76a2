"""Count by `dpr plan` the memory of the recipes of models by hub id, from their sizes alone.

    python -m benchmarks.recipe_memory              every model, a line a recipe
    python -m benchmarks.recipe_memory qwen3_0.6b   one

Weights are not read, and no GPU is needed; a recipe takes minutes. The numbers are the `memory` of each model in
`dpr_lightning/workflow/model_recipes.py`, in GiB on each device.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from dpr_lightning.cli.plan_command import plan
from dpr_lightning.workflow.model_recipes import KINDS, MODELS, ModelRecipe, write_recipes


def memory(model: ModelRecipe, kind: str, folder: Path) -> float:
    """GiB on each device at the peak of a recipe.

    Args:
        model: of the table.
        kind: of its recipe.
        folder: temporary; gets the recipes and the model's configuration.
    """
    base = folder / model.name / "base"
    base.mkdir(parents=True, exist_ok=True)
    config = {**model.architecture, "dtype": "bfloat16", "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    options = ["--config", str(folder / model.name / f"{kind}.yaml"), f"--model.policy.source={base}"]
    if kind == "dpr":
        options += [f"--data.sft={_frozen(model, base)}", f"--data.references=[{_frozen(model, base)}]"]
    return plan(options).peak / 2**30


def _frozen(model: ModelRecipe, base: Path) -> Path:
    """The folder of a policy after SFT: the model's own configuration, or an adapter on it."""
    if model.before_dpr == "sft":
        return base
    adapter = base.parent / "adapter"
    adapter.mkdir(exist_ok=True)
    content = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": 16}
    content |= {"lora_alpha": 32.0, "target_modules": "all-linear", "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(content), encoding="utf-8")
    return adapter


def main(names: list[str]) -> None:
    """Print the memory of models.

    Args:
        names: of folders of recipes; none: all.
    """
    with TemporaryDirectory() as folder:
        write_recipes(Path(folder))
        for model in MODELS:
            if not names or model.name in names:
                for kind in KINDS:
                    print(f"{model.name}/{kind}: {memory(model, kind, Path(folder)):.1f} GiB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
