"""The stages of quickstart and smollm2: fits, preview, evaluation with controls, and the files of the results."""

import json
import logging
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dpr_lightning.data import PromptSet
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.comparisons import compare_arms, to_records
from dpr_lightning.evaluation.preview import describe
from dpr_lightning.evaluation.reward_preview import RewardPreviewRun, form_name, preview_reward
from dpr_lightning.evaluation.verifiers import verifier_named
from dpr_lightning.experiments.arm_answers import Arm, ArmResult, evaluate_arms
from dpr_lightning.experiments.recipes import DprSettings
from dpr_lightning.experiments.run_report import Findings, write_run_report
from dpr_lightning.folders import clear_run
from dpr_lightning.lightning_cli.dpr_cli import run_lightning
from dpr_lightning.locking import LOCK
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.inference_policy import frozen_policy
from dpr_lightning.reports import arms_table, paired_table, preview_table, verdict_lines
from dpr_lightning.reports.console import console, progress_bar
from dpr_lightning.rewards import DenseReward, RewardSpec, decode_time_optimum

log = logging.getLogger(__name__)
VERIFIER = "answer"
STAGE_FILES = (
    "metrics.csv", "hparams.yaml", "config.yaml", "rollout_samples.jsonl", "non_finite.jsonl", "micro_batches.json",
    *(f"{evaluation}/{name}" for evaluation in ("validate", "test") for name in ("metrics.csv", "hparams.yaml")),
    "begun.json", "done.json", LOCK, "lightning_logs/**/*",
    "policies/references.json", "policies/final", "policies/ema", "policies/interrupted", "policies/step_*",
    "checkpoints/*step_*/manifest.json", "checkpoints/*step_*/metrics_?.csv", "checkpoints/*step_*/state.ckpt",
    "checkpoints/*step_*/state.ckpt/**/*",
)  # fmt: skip
"""Patterns of the files that one training run writes to its folder, for :func:`dpr_lightning.folders.clear_run`."""
RUN_FILES = (
    "metrics.json", "report.json", "report.html", "beside.log", "base", "configs",
    *(f"data/{split}.jsonl" for split in ("test", "development", "prompts", "demonstrations")),
    *(f"{stage}/{name}" for stage in ("sft", "dpr", "continued_sft") for name in STAGE_FILES),
    "wandb/**/*", "cache/*", LOCK,
)  # fmt: skip
"""Patterns of the files that quickstart or smollm2 writes to its folder."""
ARMS: dict[str, tuple[str, ...]] = {
    "sft": ("sft",),
    "reference": ("reference",),
    "continued_sft": ("continued_sft",),
    "sft_low_temperature": ("sft",),
    "contrast": ("sft", "reference"),
    "dpr": ("dpr",),
}
"""The arms of quickstart and smollm2, and the policies that each arm samples from."""
BASE, FOCUS = "sft", "dpr"
"""The arm that every arm is compared with, and the arm that is compared with every arm."""


def announce(title: str) -> None:
    """Print a rule with the name of the stage that begins."""
    console.rule(f"[bold]{title}", align="left")


def fit(config: Path) -> None:
    """Run `dpr fit`, and end its W&B run, since the next stage starts another one."""
    import wandb

    console.print(f"dpr fit --config {config}", style="dim", highlight=False)
    run_lightning(["fit", "--config", str(config)])
    wandb.finish()


def fresh_folder(folder: Path, marker: str, keep: tuple[str, ...] = ()) -> Path:
    """Create a run folder, or delete the files of an earlier run with the same ``marker`` but those of ``keep``.

    Raises:
        InputError: the folder has files and no ``marker``.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / marker).is_file():
            raise InputError(f"{folder} has files of another kind. Choose an empty folder with --output.")
        foreign = clear_run(folder, RUN_FILES, (*keep, marker))
        if foreign:
            log.warning("%s are not of a run of this command, and stay.", ", ".join(map(str, foreign)))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / marker).is_file():
        (folder / marker).write_text("{}\n")
    return folder


def keep_wandb_inside(folder: Path) -> None:
    """Direct every file that W&B writes to the run folder."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ[name] = str((folder / "wandb" / name.split("_")[1].lower()).resolve())
    os.environ.setdefault("WANDB_SILENT", "true")


def preview(
    settings: DprSettings, sft: Path, prompts: Path, *, limit: int, samples: int, seed: int
) -> tuple[RewardPreviewRun, PromptSet]:
    """Estimate from samples of π_SFT where the reward would lead, and print it. Returns the prompts, too."""
    tokenizer = load_tokenizer(str(sft))
    questions = PromptSet.load(str(prompts), tokenizer, limit=limit)
    reward = DenseReward.from_folders(str(sft), [settings.reference], settings.reward)
    with progress_bar("samples of π_SFT", len(questions) * samples) as advance:
        run = preview_reward(
            reward,
            tokenizer,
            questions,
            settings.answers,
            verifier=verifier_named(VERIFIER),
            num_samples=samples,
            seed=seed,
            progress=advance,
        )
    console.print(preview_table(run.preview.to_dict()))
    console.print(describe(run.preview, form_name(settings.reward), settings.beta))
    console.print("As published, the reward is log_ratio with β around 1:", style="bold")
    console.print(describe(run.preview, "log_ratio", 1.0))
    return run, questions


def evaluate_policies(
    folder: Path,
    sft: Path,
    settings: DprSettings,
    names: Collection[str],
    *,
    strength: float,
    low_temperature: float,
    samples: int,
    seed: int,
) -> dict[str, ArmResult]:
    """Evaluate the arms ``names`` of :data:`ARMS` on the test prompts."""
    policies = {
        "sft": sft,
        "reference": Path(settings.reference),
        "continued_sft": folder / "continued_sft" / "policies" / "final",
        "dpr": folder / "dpr" / "policies" / "final",
    }
    needed = {"sft", *(policy for name in names for policy in ARMS[name])}
    models = {name: frozen_policy(str(policies[name]))[0] for name in needed}
    tokenizer = load_tokenizer(str(sft))
    arms = {name: Arm(tuple(models[policy] for policy in ARMS[name])) for name in names}
    changes: dict[str, dict[str, Any]] = {
        "sft_low_temperature": {"temperature": low_temperature},
        "contrast": {"combine": decode_time_optimum(RewardSpec("log_ratio"), 1.0 / strength)},
    }
    arms |= {name: replace(arms[name], **change) for name, change in changes.items() if name in arms}
    verifier = verifier_named(VERIFIER)
    assert verifier is not None
    return evaluate_arms(
        arms,
        tokenizer,
        PromptSet.load(str(folder / "data" / "test.jsonl"), tokenizer),
        verifier,
        sft=models["sft"],
        options=settings.answers,
        samples=samples,
        seed=seed + 7919,
    )


def conclude(
    folder: Path,
    *,
    title: str,
    started: float,
    seed: int,
    results: Mapping[str, ArmResult],
    settings: DprSettings,
    preview_run: RewardPreviewRun,
    questions: PromptSet,
    sft: Path,
    tokenizer: PreTrainedTokenizerBase,
    continued_steps: int,
    commands: list[str],
    options: Mapping[str, Any],
) -> None:
    """Write metrics.json and report.html; print the tables and the paths of the results.

    Args:
        folder: of the run.
        title: of the report.
        started: ``time.monotonic()`` at its start.
        seed: of the run.
        results: of every arm; ``sft`` and ``dpr`` among them.
        settings: of the DPR stage.
        preview_run: result of the preview.
        questions: the prompts of the preview.
        sft: folder of π_SFT.
        tokenizer: of every arm.
        continued_steps: optimizer steps of the control that went on imitating.
        commands: that repeat the run.
        options: of the command, for the record.
    """
    paired = to_records(compare_arms({name: [result.scores()] for name, result in results.items()}, BASE, FOCUS))
    metrics: dict[str, Any] = {
        "arms": {name: result.summary() for name, result in results.items()},
        "paired": paired,
        "verdict": "\n".join(verdict_lines(paired, FOCUS)),
        "seed": seed,
        "settings": dict(options),
        "continued_sft_steps": continued_steps,
        "seconds": round(time.monotonic() - started, 1),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    console.print(arms_table(metrics["arms"]))
    console.print(paired_table(paired))
    console.print(metrics["verdict"], highlight=False)
    findings = Findings(
        title=title,
        folder=folder,
        metrics=metrics,
        preview=preview_run,
        results=dict(results),
        reward=settings.reward,
        beta=settings.beta,
        prompt_texts=questions.texts,
        commands=commands,
        sft=str(sft),
        reference=settings.reference,
        tokenizer=tokenizer,
    )
    report = write_run_report(findings)
    console.print(f"\n[bold]Done in {metrics['seconds']:.0f} s.[/bold]")
    for label, path in (
        ("report", report),
        ("metrics", folder / "metrics.json"),
        ("policy", folder / "dpr" / "policies" / "final"),
        ("W&B runs", folder / "wandb"),
    ):
        console.print(f"  {label}: {path}", highlight=False)
