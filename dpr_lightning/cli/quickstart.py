"""``dpr quickstart``: the whole path on a toy, with every control, in minutes on a CPU."""

import time
from pathlib import Path

from dpr_lightning.cli.stages import (
    DprSettings,
    announce,
    conclude,
    continued_config,
    equal_compute_steps,
    evaluate_policies,
    fit,
    fresh_folder,
    keep_wandb_inside,
    preview,
    stage_config,
)
from dpr_lightning.cli.toy import toy

MARKER = "quickstart.json"
HOME = "runs/toy"


def quickstart(
    output: str = "runs/quickstart",
    seed: int = 0,
    demonstrations: int = 1000,
    test: int = 400,
    samples: int = 4,
    preview_prompts: int = 50,
    preview_samples: int = 16,
    sft_steps: int | None = None,
    dpr_steps: int | None = None,
    contrast_strength: float = 1.0,
    low_temperature: float = 0.5,
) -> None:
    """Demonstrations → SFT → dense reward → preview → Dense-Path REINFORCE → evaluation beside its controls → report.

    Args:
        output: run folder; its former contents are replaced.
        seed: of data, weights, order and samples.
        demonstrations: prompts with rationale and answer.
        test: prompts of the evaluation, disjoint from all others.
        samples: sampled answers a test prompt.
        preview_prompts: prompts of the preview.
        preview_samples: samples a prompt of the preview.
        sft_steps: optimizer steps of imitation; None takes the config's.
        dpr_steps: optimizer steps of Dense-Path REINFORCE; None takes the config's.
        contrast_strength: w of the decode-time contrast arm.
        low_temperature: of the SFT arm sampled at lower temperature.
    """
    options = dict(locals())
    started = time.monotonic()
    folder = fresh_folder(Path(output), MARKER)
    keep_wandb_inside(folder)
    announce("1/6  Demonstrations and a base policy")
    toy(str(folder), demonstrations=demonstrations, test=test, seed=seed)

    announce("2/6  Supervised fine-tuning, keeping earlier checkpoints as references")
    sft_config = stage_config("toy/sft.yaml", HOME, folder, seed, {"trainer.max_steps": sft_steps})
    fit(sft_config)
    sft = folder / "sft" / "policies" / "final"
    dpr_config = stage_config("toy/dpr.yaml", HOME, folder, seed, {"trainer.max_steps": dpr_steps})
    settings = DprSettings.read(dpr_config)

    announce("3/6  The reward those checkpoints hold, and where it would lead: before any reinforcement learning")
    preview_run, questions = preview(
        settings,
        sft,
        folder / "data" / "development.jsonl",
        limit=preview_prompts,
        samples=preview_samples,
        seed=seed,
    )

    announce("4/6  Dense-Path REINFORCE")
    fit(dpr_config)

    announce("5/6  Control: continued SFT at equal compute")
    steps = equal_compute_steps(dpr_config, sft_config)
    continued = continued_config(folder, seed, sft_config, sft, steps)
    fit(continued)

    announce(f"6/6  Evaluation on {test} prompts that nothing was trained on")
    results, tokenizer = evaluate_policies(
        folder,
        sft,
        settings,
        strength=contrast_strength,
        low_temperature=low_temperature,
        samples=samples,
        seed=seed,
    )
    conclude(
        folder,
        title="Dense-Path REINFORCE: quickstart",
        started=started,
        seed=seed,
        results=results,
        settings=settings,
        preview_run=preview_run,
        questions=questions,
        sft=sft,
        tokenizer=tokenizer,
        continued_steps=steps,
        commands=[
            f"dpr quickstart --output {output} --seed {seed}",
            *(f"dpr fit --config {config}" for config in (sft_config, dpr_config, continued)),
        ],
        options=options,
    )
