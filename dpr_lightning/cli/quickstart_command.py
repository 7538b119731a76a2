"""``dpr quickstart``: the whole path on a toy, with every control, in minutes on a CPU."""

from pathlib import Path
from typing import Annotated

from dpr_lightning.cli.toy_command import toy
from dpr_lightning.experiments.recipes import Recipes
from dpr_lightning.experiments.run_folder import fresh_folder
from dpr_lightning.experiments.standard_experiment import run_standard_experiment
from dpr_lightning.paths import Writes

MARKER = "quickstart.json"


def quickstart(
    output: Annotated[str, Writes()] = "runs/quickstart",
    seed: int = 0,
    demonstrations: int = 400,
    test: int = 400,
    samples: int = 4,
    preview_prompts: int = 50,
    preview_samples: int = 16,
    sft_steps: int | None = None,
    dpr_steps: int | None = None,
    contrast_strength: float = 1.0,
    low_temperature: float = 0.5,
) -> None:
    """Demonstrations → SFT → dense reward → preview → Dense-Path REINFORCE → evaluation with controls → report.

    Args:
        output: run folder; its former contents are replaced.
        seed: of data, weights, order and samples.
        demonstrations: prompts with rationale and answer.
        test: prompts of the evaluation, disjoint from all other splits.
        samples: sampled answers a test prompt.
        preview_prompts: prompts of the preview.
        preview_samples: samples a prompt of the preview.
        sft_steps: optimizer steps of imitation; None takes the config's.
        dpr_steps: optimizer steps of Dense-Path REINFORCE; None takes the config's.
        contrast_strength: w of the decode-time contrast arm.
        low_temperature: of the SFT arm sampled at lower temperature.
    """
    options = dict(locals())
    fresh_folder(Path(output), MARKER)

    def prepare(folder: Path, seed: int) -> None:
        toy(str(folder), demonstrations=demonstrations, test=test, seed=seed)

    run_standard_experiment(
        "quickstart",
        options,
        Recipes(
            "toy/sft.yaml",
            "toy/dpr.yaml",
            home="runs/toy",
            sft_steps=sft_steps,
            dpr_steps=dpr_steps,
            preview_samples=preview_samples,
            preview_prompts=preview_prompts,
        ),
        prepare,
        title="Dense-Path REINFORCE: quickstart",
    )
