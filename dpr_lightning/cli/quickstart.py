"""``dpr quickstart``: the whole path on a toy, with every control, in minutes on a CPU."""

import json
import math
import os
import shutil
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from dpr_lightning.cli.arms import Arm, ArmResult, evaluate_arms, paired_table
from dpr_lightning.cli.lightning import run_lightning
from dpr_lightning.cli.loading import console, frozen_policy, progress_bar, verifier_named
from dpr_lightning.cli.report import Findings, write_run_report
from dpr_lightning.cli.toy import toy
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
MARKER = "quickstart.json"
REFERENCE_FRACTION = 0.25
# Training FLOPs a token in units of one forward pass. All-actions DPR: sampling 1, scoring 2, the same two models
# over all actions 2, forward and backward 3. SFT: forward and backward 3.
DPR_PASSES, SFT_PASSES = 8, 3


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
    started = time.monotonic()
    folder = _fresh_folder(Path(output))
    settings = {name: value for name, value in locals().items() if name not in ("started", "folder")}
    _stay_inside(folder)
    _stage("1/6  Demonstrations and a base policy")
    toy(str(folder), demonstrations=demonstrations, test=test, seed=seed)

    _stage("2/6  Supervised fine-tuning, keeping earlier checkpoints as references")
    sft_config = _stage_config("sft", folder, seed, {"trainer.max_steps": sft_steps})
    _fit(sft_config)
    sft = folder / "sft" / "policies" / "final"
    dpr_config = _stage_config("dpr", folder, seed, {"trainer.max_steps": dpr_steps})
    reference = _reference(folder, dpr_config)

    _stage("3/6  The reward those checkpoints hold, and where it would lead: before any reinforcement learning")
    preview_questions = PromptSet.load(
        str(folder / "data" / "development.jsonl"), load_tokenizer(str(sft)), limit=preview_prompts
    )
    preview = _preview(folder, dpr_config, sft, reference, preview_questions, preview_samples, seed)

    _stage("4/6  Dense-Path REINFORCE")
    _fit(dpr_config)

    _stage("5/6  Control: continued SFT at equal compute")
    steps = _equal_compute_steps(dpr_config, sft_config)
    continued = _continued_config(folder, seed, sft_config, sft, steps)
    _fit(continued)

    _stage(f"6/6  Evaluation on {test} prompts that nothing was trained on")
    results, tokenizer = _evaluate(folder, sft, reference, contrast_strength, low_temperature, samples, seed)
    metrics: dict[str, Any] = {
        "arms": {name: result.summary() for name, result in results.items()},
        "paired": paired_table(results, "sft", "dpr"),
        "seed": seed,
        "settings": settings,
        "continued_sft_steps": steps,
        "seconds": round(time.monotonic() - started, 1),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    console.print(arms_table(metrics["arms"]))
    console.print(paired_rows(metrics["paired"]))
    findings = Findings(
        folder=folder,
        metrics=metrics,
        preview=preview,
        results=results,
        reward=_reward_spec(dpr_config),
        beta=_beta(dpr_config),
        prompt_texts=preview_questions.texts,
        commands=[
            f"dpr quickstart --output {output} --seed {seed}",
            *(f"dpr fit --config {config}" for config in (sft_config, dpr_config, continued)),
        ],
        sft=str(sft),
        reference=str(reference),
        tokenizer=tokenizer,
    )
    report = write_run_report(findings)
    console.print(f"\n[bold]Done in {metrics['seconds']:.0f} s.[/bold]")
    for label, path in (
        ("report", report),
        ("metrics", folder / "metrics.json"),
        ("policy", folder / "dpr" / "policies" / "final"),
        ("W&B offline runs", folder / "wandb"),
    ):
        console.print(f"  {label}: {path}", highlight=False)


def _stage(title: str) -> None:
    console.rule(f"[bold]{title}", align="left")


def _fit(config: Path) -> None:
    """`dpr fit`, and the end of its W&B run: the next stage has a run of its own."""
    import wandb

    run_lightning(["fit", "--config", str(config)])
    wandb.finish()


def _fresh_folder(folder: Path) -> Path:
    """An empty run folder; only ever deletes what a former quickstart wrote."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise InputError(f"{folder} holds other files. Choose an empty folder with --output.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("{}\n")
    return folder


def _stay_inside(folder: Path) -> None:
    """Keep every file that W&B writes in the run folder."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ[name] = str((folder / "wandb" / name.split("_")[1].lower()).resolve())
    os.environ.setdefault("WANDB_SILENT", "true")


def _stage_config(name: str, folder: Path, seed: int, changes: dict[str, Any]) -> Path:
    """The packaged toy config with its paths in ``folder``: a file to read, change and run again."""
    text = files("dpr_lightning.configs").joinpath("toy", f"{name}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text.replace("runs/toy", str(folder)))
    config["seed_everything"] = seed
    for section in ("model", "data"):
        config[section]["init_args"]["seed"] = seed
    for place, value in changes.items():
        if value is not None:
            owner, _, key = place.rpartition(".")
            target = config
            for part in owner.split("."):
                target = target[part]
            target[key] = value
    if name == "dpr":
        references = config["data"]["init_args"]["references"]
        config["data"]["init_args"]["references"] = [_nearest_reference(folder, path) for path in references]
    return _write_config(config, folder, name)


def _write_config(config: dict[str, Any], folder: Path, name: str) -> Path:
    path = folder / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return path


def _nearest_reference(folder: Path, wanted: str) -> str:
    """The kept checkpoint nearest to ``REFERENCE_FRACTION``, whatever number of steps the run had."""
    if Path(wanted).exists():
        return wanted
    kept = json.loads((folder / "sft" / "policies" / "references.json").read_text())
    earlier = {name: fraction for name, fraction in kept.items() if fraction < 1.0}
    nearest = min(earlier, key=lambda name: abs(earlier[name] - REFERENCE_FRACTION))
    return str(folder / "sft" / "policies" / nearest)


def _reference(folder: Path, dpr_config: Path) -> Path:
    return Path(yaml.safe_load(dpr_config.read_text())["data"]["init_args"]["references"][0])


def _reward_spec(dpr_config: Path) -> RewardSpec:
    return RewardSpec(**yaml.safe_load(dpr_config.read_text())["data"]["init_args"]["reward"])


def _beta(dpr_config: Path) -> float:
    return float(yaml.safe_load(dpr_config.read_text())["model"]["init_args"]["kl"]["coefficient"])


def _max_new_tokens(folder: Path) -> int:
    config = yaml.safe_load((folder / "configs" / "dpr.yaml").read_text())
    return int(config["data"]["init_args"]["sampling"]["max_new_tokens"])


def _preview(
    folder: Path, dpr_config: Path, sft: Path, reference: Path, questions: PromptSet, samples: int, seed: int
) -> RewardPreviewRun:
    spec, beta = _reward_spec(dpr_config), _beta(dpr_config)
    reward = DenseReward.from_folders(str(sft), [str(reference)], spec)
    with progress_bar("samples of π_SFT", len(questions) * samples) as advance:
        run = preview_reward(
            reward,
            load_tokenizer(str(sft)),
            questions,
            SamplingOptions(_max_new_tokens(folder)),
            verifier=verifier_named(VERIFIER),
            num_samples=samples,
            seed=seed,
            progress=advance,
        )
    console.print(preview_table(run.preview.to_dict()))
    console.print(describe(run.preview, form_name(spec), beta))
    console.print("As published, the reward is log_ratio with β around 1:", style="bold")
    console.print(describe(run.preview, "log_ratio", 1.0))
    return run


def _equal_compute_steps(dpr_config: Path, sft_config: Path) -> int:
    """Optimizer steps of SFT that cost at least the FLOPs of the DPR phase.

    Counted in forward passes over sequences: those of both phases are answers to prompts of one distribution.
    """
    dpr, sft = (yaml.safe_load(path.read_text()) for path in (dpr_config, sft_config))
    data = dpr["data"]["init_args"]
    sequences = int(data["prompts_per_rollout"] * data["samples_per_prompt"] * dpr["trainer"]["max_steps"])
    one_step = int(sft["data"]["init_args"]["batch_size"]) * SFT_PASSES
    return max(1, math.ceil(sequences * DPR_PASSES / one_step))


def _continued_config(folder: Path, seed: int, sft_config: Path, sft: Path, steps: int) -> Path:
    """SFT that goes on from π_SFT on the same demonstrations."""
    config = yaml.safe_load(sft_config.read_text().replace(f"{folder}/sft", f"{folder}/continued_sft"))
    config["model"]["init_args"]["policy"]["source"] = str(sft)
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] /= 10
    config["data"]["init_args"]["seed"] = seed + 1
    config["trainer"]["max_steps"] = steps
    config["trainer"]["val_check_interval"] = None
    config["trainer"]["limit_val_batches"] = 0
    kept = [entry for entry in config["trainer"]["callbacks"] if entry["class_path"].endswith("ReferenceCheckpoints")]
    for callback in kept:
        callback["init_args"]["fractions"] = []
    config["trainer"]["callbacks"] = kept
    for logger in config["trainer"]["logger"]:
        if logger["class_path"].endswith("WandbLogger"):
            logger["init_args"]["name"] = "continued_sft"
    return _write_config(config, folder, "continued_sft")


def _evaluate(
    folder: Path, sft: Path, reference: Path, strength: float, low_temperature: float, samples: int, seed: int
) -> tuple[dict[str, ArmResult], Any]:
    policies = {
        "sft": sft,
        "reference": reference,
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
        max_new_tokens=_max_new_tokens(folder),
        samples=samples,
        seed=seed + 7919,
    )
    return results, tokenizer
