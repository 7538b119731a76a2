"""The content of the reports of quickstart and smollm2."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dpr_lightning.errors import counted
from dpr_lightning.evaluation.preview import describe
from dpr_lightning.evaluation.reward_preview import RewardPreviewRun, form_name
from dpr_lightning.experiments.arm_answers import ArmResult
from dpr_lightning.experiments.examples import right_and_wrong
from dpr_lightning.experiments.saved_report import machine, save_report
from dpr_lightning.experiments.training_curves import DPR_PANELS, SFT_PANELS, panels
from dpr_lightning.reports import (
    Report,
)
from dpr_lightning.rewards import RewardSpec


@dataclass(frozen=True)
class Findings:
    """Results of a run of quickstart or smollm2."""

    title: str
    folder: Path
    metrics: dict[str, Any]
    preview: RewardPreviewRun
    results: dict[str, ArmResult]
    reward: RewardSpec
    beta: float
    prompt_texts: list[str]
    commands: list[str]
    sft: str
    reference: str
    tokenizer: Any


def write_run_report(findings: Findings) -> Path:
    """Write the page of a whole run, and its content as report.json."""
    preview = findings.preview
    content = Report(
        title=findings.title,
        verdict=findings.metrics["verdict"],
        arms=findings.metrics["arms"],
        paired=findings.metrics["paired"],
        preview=preview.preview.to_dict(),
        preview_words=describe(preview.preview, form_name(findings.reward), findings.beta)
        + "\n"
        + describe(preview.preview, "log_ratio", 1.0),
        panels={
            "Supervised fine-tuning": panels(findings.folder / "sft" / "metrics.csv", SFT_PANELS),
            "Dense-Path REINFORCE": panels(findings.folder / "dpr" / "metrics.csv", DPR_PANELS),
        },
        pairs=right_and_wrong(preview.answers, preview.scores, findings.prompt_texts, findings.tokenizer),
        commands=findings.commands,
        settings=_settings(findings.folder),
        machine=machine(),
        notes=[
            f"Seed {findings.metrics['seed']}. Intervals: 95%, paired by prompt, bootstrap.",
            f"Continued SFT ran {counted(findings.metrics['continued_sft_steps'], 'step')}, "
            "at least the FLOPs of the DPR phase.",
            "Reverse KL is Σ log π − log π_SFT over a sampled response, in nats; of greedy answers it is not measured.",
        ],
    )
    return save_report(findings.folder, content)


def _settings(folder: Path) -> dict[str, Any]:
    """The configs of the stages, by file name."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((folder / "configs").glob("*.yaml"))}
