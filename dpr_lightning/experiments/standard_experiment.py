"""Dense-Path REINFORCE with its controls on one seed, from nothing to a page: what quickstart and smollm2 run."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dpr_lightning.experiments.arm_specs import CONTINUED, ArmSpec, standard_arms
from dpr_lightning.experiments.experiment import Experiment, run_experiment
from dpr_lightning.experiments.recipes import Recipes, read_config
from dpr_lightning.reports.console import console

FOCUS = "dpr"


def run_standard_experiment(
    command: str,
    options: Mapping[str, Any],
    recipes: Recipes,
    prepare: Callable[[Path, int], None],
    *,
    title: str,
    more_arms: Mapping[str, ArmSpec] | None = None,
) -> None:
    """Run the standard arms in the folder ``output`` of the options, and write metrics.json there.

    Args:
        command: of dpr.
        options: of the command: ``output``, ``seed``, ``samples``, ``contrast_strength``, ``low_temperature``, and more
            for the record.
        recipes: of SFT and DPR.
        prepare: writes ``base/`` and ``data/`` into a folder.
        title: of the page.
        more_arms: than the standard ones.
    """
    started = time.monotonic()
    folder, seed = Path(options["output"]), int(options["seed"])
    configs = {name: folder / "configs" / f"{name}.yaml" for name in ("sft", FOCUS, CONTINUED)}
    arms = standard_arms(contrast_strength=options["contrast_strength"], low_temperature=options["low_temperature"])
    arms |= more_arms or {}
    outcome = run_experiment(
        Experiment(
            title,
            folder,
            arms,
            [seed],
            recipes,
            prepare,
            commands=[
                f"dpr {command} --output {folder} --seed {seed}",
                *(f"dpr fit --config {config}" for config in configs.values()),
            ],
            samples=int(options["samples"]),
            focus=FOCUS,
            options=options,
            online=recipes.online,
            flat=True,
        )
    )
    metrics = {
        "arms": outcome.arms,
        "paired": outcome.paired,
        "verdict": outcome.verdict,
        "seed": seed,
        "settings": dict(options),
        "continued_sft_steps": read_config(configs[CONTINUED])["trainer"]["max_steps"],
        "seconds": round(time.monotonic() - started, 1),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    for label, path in (
        ("metrics", folder / "metrics.json"),
        ("policy", folder / FOCUS / "policies" / "final"),
        ("W&B runs", folder / "wandb"),
    ):
        console.print(f"  {label}: {path}", highlight=False)
