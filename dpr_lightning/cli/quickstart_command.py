"""``dpr quickstart``: what noisy demonstrations are worth, and what the policies that learnt from them say of it."""

import json
from pathlib import Path
from typing import Annotated

from dpr_lightning.cli.toy_command import toy
from dpr_lightning.errors import counted
from dpr_lightning.experiments.arm_specs import cleaning_arms
from dpr_lightning.experiments.recipes import Recipes
from dpr_lightning.experiments.run_folder import fresh_folder
from dpr_lightning.experiments.standard_experiment import run_standard_experiment
from dpr_lightning.paths import Writes
from dpr_lightning.reports.console import console

MARKER, HOME = "quickstart.json", "runs/small"
PRINTED = 6
"""Rows on the console."""


def quickstart(
    output: Annotated[str, Writes()] = "runs/quickstart",
    seed: int = 0,
    demonstrations: int = 400,
    noise: float = 0.2,
    test: int = 400,
    samples: int = 4,
    preview_prompts: int = 50,
    preview_samples: int = 16,
    sft_steps: int | None = None,
    dpr_steps: int | None = None,
    contrast_strength: float = 1.0,
    low_temperature: float = 0.5,
) -> None:
    """Noisy demonstrations → SFT → what looks wrong → SFT anew, beside Dense-Path REINFORCE and controls → report.

    Args:
        output: run folder; its former contents are replaced.
        seed: of data, weights, order and samples.
        demonstrations: prompts with rationale and answer.
        noise: share of them with a mistake: a digit of a step, and a digit of the answer after it.
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
        toy(
            str(folder),
            demonstrations=demonstrations,
            test=test,
            hidden_size=64,
            layers=2,
            noise=noise,
            seed=seed,
        )

    run_standard_experiment(
        "quickstart",
        options,
        Recipes(
            "quickstart/sft.yaml",
            "quickstart/dpr.yaml",
            home=HOME,
            sft_steps=sft_steps,
            dpr_steps=dpr_steps,
            preview_samples=preview_samples,
            preview_prompts=preview_prompts,
        ),
        prepare,
        title="Noisy demonstrations: quickstart",
        more_arms=cleaning_arms(HOME) if noise else {},
    )
    if noise:
        report_cleaned(Path(output))


def report_cleaned(folder: Path) -> None:
    """Print how many of the rows that the arm ``cleaned`` left out have a mistake, with a few of them."""
    rows = [json.loads(line) for line in (folder / "data" / "oracle_masked.jsonl").read_text("utf-8").splitlines()]
    listed = json.loads((folder / "cleaned_rows" / "cleaned.json").read_text(encoding="utf-8"))["rows"]
    wrong = {number for number, row in enumerate(rows, 1) if row.get("loss_spans")}
    hits = sum(row["number"] in wrong for row in listed)
    console.print(
        f"\n{len(wrong)} of {len(rows)} demonstrations have a mistake, which no arm but `cleaned_oracle` is told.\n"
        f"`trimmed` learnt from all of them, and is sure that {counted(len(listed), 'row')} should read otherwise: "
        f"{hits} of these have a mistake. `cleaned` was trained without them. Some, what it refuses in brackets:",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for row in listed[:PRINTED]:
        text, spans = rows[row["number"] - 1]["completion"], row["spans"]
        for start, end in sorted(spans, reverse=True):
            text = f"{text[:start]}[{text[start:end]}]{text[end:]}"
        mark = "wrong" if row["number"] in wrong else "right"
        prompt = rows[row["number"] - 1]["prompt"]
        console.print(f"  {mark}: {prompt} {text!r}", highlight=False, markup=False, soft_wrap=True)
