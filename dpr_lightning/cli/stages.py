"""The stages that every whole run has: packaged configs, fits, preview, controls, evaluation, and what it leaves."""

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from dpr_lightning.cli.arms import Arm, ArmResult, evaluate_arms, paired_table
from dpr_lightning.cli.lightning import run_lightning
from dpr_lightning.cli.loading import console, frozen_policy, progress_bar, verifier_named
from dpr_lightning.cli.report import Findings, write_run_report
from dpr_lightning.data import PromptSet
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.preview import describe
from dpr_lightning.evaluation.reward_preview import RewardPreviewRun, form_name, preview_reward
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.reports import arms_table, preview_table
from dpr_lightning.reports import paired_table as paired_rows
from dpr_lightning.rewards import DenseReward, RewardSpec
from dpr_lightning.rollouts import SamplingOptions, contrast

VERIFIER = "answer"
TRAINING_PASSES = 3  # forward and backward, in forward passes over a token


@dataclass(frozen=True)
class DprSettings:
    """What the config of a DPR stage says that other stages need; ``beta`` is β."""

    reference: str
    reward: RewardSpec
    beta: float
    max_new_tokens: int

    @classmethod
    def read(cls, config: Path) -> "DprSettings":
        """From the YAML file of the stage."""
        held = yaml.safe_load(config.read_text(encoding="utf-8"))
        data = held["data"]["init_args"]
        return cls(
            data["references"][0],
            RewardSpec(**data["reward"]),
            float(held["model"]["init_args"]["kl"]["coefficient"]),
            int(data["sampling"]["max_new_tokens"]),
        )


def announce(title: str) -> None:
    """A rule with the name of the stage that begins."""
    console.rule(f"[bold]{title}", align="left")


def fit(config: Path) -> None:
    """`dpr fit`, and the end of its W&B run: the next stage has a run of its own."""
    import wandb

    console.print(f"dpr fit --config {config}", style="dim", highlight=False)
    run_lightning(["fit", "--config", str(config)])
    wandb.finish()


def fresh_folder(folder: Path, marker: str, keep: tuple[str, ...] = ()) -> Path:
    """An empty run folder but for ``keep``; only ever deletes what a former run with the same ``marker`` wrote."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / marker).is_file():
            raise InputError(f"{folder} holds other files. Choose an empty folder with --output.")
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                if path.name not in keep:
                    shutil.rmtree(path)
            elif path.name != marker:
                path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / marker).is_file():
        (folder / marker).write_text("{}\n")
    return folder


def keep_wandb_inside(folder: Path) -> None:
    """Keep every file that W&B writes in the run folder."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ[name] = str((folder / "wandb" / name.split("_")[1].lower()).resolve())
    os.environ.setdefault("WANDB_SILENT", "true")


def stage_config(
    packaged: str, home: str, folder: Path, seed: int, changes: Mapping[str, Any], *, online: bool = False
) -> Path:
    """A packaged config with its paths in ``folder``: a file to read, change and run again.

    Args:
        packaged: path inside ``dpr_lightning.configs``, such as ``toy/sft.yaml``.
        home: folder that the packaged config writes to, such as ``runs/toy``.
        folder: takes its place; the config is written to ``configs/`` in it.
        seed: of order, weights and samples.
        changes: dotted places and their new values; None leaves the config's own.
        online: whether W&B sends the run to its server.
    """
    text = files("dpr_lightning.configs").joinpath(*packaged.split("/")).read_text(encoding="utf-8")
    config = yaml.safe_load(text.replace(home, str(folder)))
    config["seed_everything"] = seed
    for section in ("model", "data"):
        config[section]["init_args"]["seed"] = seed
    for logger in config["trainer"]["logger"]:
        if "offline" in logger["init_args"]:
            logger["init_args"]["offline"] = not online
    for place, value in changes.items():
        if value is not None:
            *owners, key = place.split(".")
            target = config
            for owner in owners:
                target = target[owner]
            target[key] = value
    data = config["data"]["init_args"]
    if "references" in data:
        data["references"] = [str(_nearest_reference(Path(path))) for path in data["references"]]
    return write_config(config, folder, Path(packaged).stem)


def write_config(config: dict[str, Any], folder: Path, name: str) -> Path:
    """Write ``configs/<name>.yaml`` in a run folder."""
    path = folder / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def _nearest_reference(wanted: Path, fraction: float = 0.25) -> Path:
    """The reference itself; or, in a run of another length, the one kept nearest to ``fraction`` of the run."""
    if wanted.exists():
        return wanted
    kept: dict[str, float] = json.loads((wanted.parent / "references.json").read_text(encoding="utf-8"))
    earlier = {name: place for name, place in kept.items() if place < 1.0}
    return wanted.parent / min(earlier, key=lambda name: abs(earlier[name] - fraction))


def preview(
    settings: DprSettings, sft: Path, prompts: Path, *, limit: int, samples: int, seed: int
) -> tuple[RewardPreviewRun, PromptSet]:
    """Where the reward would lead, from samples of π_SFT; printed, and said in words. Also the prompts asked."""
    tokenizer = load_tokenizer(str(sft))
    questions = PromptSet.load(str(prompts), tokenizer, limit=limit)
    reward = DenseReward.from_folders(str(sft), [settings.reference], settings.reward)
    with progress_bar("samples of π_SFT", len(questions) * samples) as advance:
        run = preview_reward(
            reward,
            tokenizer,
            questions,
            SamplingOptions(settings.max_new_tokens),
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


def equal_compute_steps(dpr_config: Path, sft_config: Path) -> int:
    """Optimizer steps of SFT that cost at least the FLOPs of the DPR phase.

    Counted in forward passes over sequences: those of both phases are answers to prompts of one distribution.
    """
    dpr, sft = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (dpr_config, sft_config))
    data = dpr["data"]["init_args"]
    sequences = int(data["prompts_per_rollout"] * data["samples_per_prompt"] * dpr["trainer"]["max_steps"])
    batch_size = int(sft["data"]["init_args"]["batch_size"]) * int(sft["trainer"].get("accumulate_grad_batches", 1))
    return max(1, math.ceil(sequences * _dpr_passes(dpr) / (batch_size * TRAINING_PASSES)))


def _dpr_passes(config: Mapping[str, Any]) -> float:
    """Forward passes over a token for one optimizer step: training, and a rollout's sampling and scoring by its uses.

    The all-actions estimator scores micro-batches again when a rollout has several.
    """
    data = config["data"]["init_args"]
    models = 1 + len(data["references"])
    again = models if _scores_twice(config) else 0
    return TRAINING_PASSES + again + (1 + models) / int(data.get("refresh_every", 1))


def _scores_twice(config: Mapping[str, Any]) -> bool:
    several = int(config["trainer"].get("accumulate_grad_batches", 1)) > 1
    return several and config["model"]["init_args"].get("estimator") == "all_actions"


def continued_config(folder: Path, seed: int, sft_config: Path, sft: Path, steps: int) -> Path:
    """SFT that goes on from π_SFT on the same demonstrations, at a tenth of the learning rate."""
    text = sft_config.read_text(encoding="utf-8").replace(f"{folder}/sft", f"{folder}/continued_sft")
    config = yaml.safe_load(text)
    config["model"]["init_args"]["policy"]["source"] = str(sft)
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] /= 10
    config["data"]["init_args"]["seed"] = seed + 1
    trainer = config["trainer"]
    trainer |= {"max_steps": steps, "val_check_interval": None, "limit_val_batches": 0}
    kept = [entry for entry in trainer["callbacks"] if entry["class_path"].endswith("ReferenceCheckpoints")]
    for callback in kept:
        callback["init_args"]["fractions"] = []
    trainer["callbacks"] = kept
    # Without its callback Lightning would write checkpoints of its own, at the end of each epoch.
    trainer["enable_checkpointing"] = False
    for logger in trainer["logger"]:
        if logger["class_path"].endswith("WandbLogger"):
            logger["init_args"]["name"] += "-continued"
    return write_config(config, folder, "continued_sft")


def evaluate_policies(
    folder: Path,
    sft: Path,
    settings: DprSettings,
    *,
    strength: float,
    low_temperature: float,
    samples: int,
    seed: int,
) -> tuple[dict[str, ArmResult], PreTrainedTokenizerBase]:
    """DPR and its controls on the test prompts: SFT, reference, continued SFT, lower temperature, contrast."""
    policies = {
        "sft": sft,
        "reference": Path(settings.reference),
        "continued_sft": folder / "continued_sft" / "policies" / "final",
        "dpr": folder / "dpr" / "policies" / "final",
    }
    models = {name: frozen_policy(str(path))[0] for name, path in policies.items()}
    tokenizer = load_tokenizer(str(sft))
    arms = {
        "sft": Arm((models["sft"],)),
        "reference": Arm((models["reference"],)),
        "continued_sft": Arm((models["continued_sft"],)),
        "sft_low_temperature": Arm((models["sft"],), temperature=low_temperature),
        "contrast": Arm((models["sft"], models["reference"]), combine=contrast(strength)),
        "dpr": Arm((models["dpr"],)),
    }
    verifier = verifier_named(VERIFIER)
    assert verifier is not None
    results = evaluate_arms(
        arms,
        tokenizer,
        PromptSet.load(str(folder / "data" / "test.jsonl"), tokenizer),
        verifier,
        sft=models["sft"],
        max_new_tokens=settings.max_new_tokens,
        samples=samples,
        seed=seed + 7919,
    )
    return results, tokenizer


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
    """Write metrics.json and report.html, print the tables and where everything is.

    Args:
        folder: of the run.
        title: of the report.
        started: ``time.monotonic()`` at its start.
        seed: of the run.
        results: of every arm; ``sft`` and ``dpr`` among them.
        settings: of the DPR stage.
        preview_run: what the preview found.
        questions: the prompts of the preview.
        sft: folder of π_SFT.
        tokenizer: of every arm.
        continued_steps: optimizer steps of the control that went on imitating.
        commands: that repeat the run.
        options: of the command, for the record.
    """
    metrics: dict[str, Any] = {
        "arms": {name: result.summary() for name, result in results.items()},
        "paired": paired_table(results, "sft", "dpr"),
        "seed": seed,
        "settings": dict(options),
        "continued_sft_steps": continued_steps,
        "seconds": round(time.monotonic() - started, 1),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    console.print(arms_table(metrics["arms"]))
    console.print(paired_rows(metrics["paired"]))
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
