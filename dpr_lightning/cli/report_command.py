"""``dpr report``, and the content of the reports of quickstart and smollm2."""

import dataclasses
import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml

from dpr_lightning.cli.arms import ArmResult
from dpr_lightning.cli.loading import console
from dpr_lightning.cli.rewards_command import right_and_wrong
from dpr_lightning.cli.training_curves import DPR_PANELS, SFT_PANELS, panels
from dpr_lightning.errors import InputError, counted
from dpr_lightning.evaluation.comparisons import corrected
from dpr_lightning.evaluation.preview import describe
from dpr_lightning.evaluation.reward_preview import RewardPreviewRun, form_name
from dpr_lightning.evaluation.statistics import PairedComparison
from dpr_lightning.paths import REPORT_MARKS, Reads, Writes
from dpr_lightning.reports import (
    Answer,
    Pair,
    Panel,
    Point,
    Report,
    Response,
    Sample,
    Scatter,
    Series,
    write_report,
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


def report(
    run: Annotated[str, Reads("report.json", "**/metrics.csv")],
    output: Annotated[str | None, Writes(marks=REPORT_MARKS)] = None,
) -> None:
    """Write the HTML report of a run folder: of a quickstart, or the curves of any training run.

    Args:
        run: folder of the run.
        output: HTML file; report.html in the run folder by default.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise InputError(f"There is no run folder {run!r}.")
    target = Path(output) if output is not None else folder / "report.html"
    saved = folder / "report.json"
    content = _from_json(json.loads(saved.read_text())) if saved.is_file() else _from_curves(folder)
    console.print(f"Report: {write_report(target, content)}")


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


def save_report(folder: Path, content: Report) -> Path:
    """Write report.html to ``folder``, and report.json, from which `dpr report` writes the page again."""
    (folder / "report.json").write_text(json.dumps(dataclasses.asdict(content), ensure_ascii=False) + "\n")
    return write_report(folder / "report.html", content)


def machine() -> dict[str, Any]:
    """Processor, threads, GPU and versions that a run used."""
    information = Path("/proc/cpuinfo")
    names = information.read_text().splitlines() if information.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in names if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _settings(folder: Path) -> dict[str, Any]:
    """The configs of the stages, by file name."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((folder / "configs").glob("*.yaml"))}


def _from_curves(folder: Path) -> Report:
    panels_of: dict[str, list[Panel]] = {}
    for path in sorted(folder.rglob("metrics.csv")):
        curves = panels(path, (*SFT_PANELS, *DPR_PANELS))
        if curves:
            panels_of[str(path.parent.relative_to(folder)) if path.parent != folder else folder.name] = curves
    if not panels_of and (table := next(folder.rglob("metrics.csv"), None)) is not None:
        raise InputError(
            f"{table} has no curve of a training run. Curves have a point every `trainer.log_every_n_steps` steps "
            "(Lightning's default: 50): lower it for a short run."
        )
    if not panels_of:
        raise InputError(
            f"{folder} has neither report.json nor a metrics.csv with curves. Add Lightning's CSVLogger to the "
            "config's trainer.logger."
        )
    return Report(title=f"Run {folder.name}", verdict="Curves of a training run.", panels=panels_of, machine=machine())


def _from_json(content: dict[str, Any]) -> Report:
    """A Report from its JSON."""
    content["paired"] = _judged(content["paired"])
    content["panels"] = {
        stage: [
            Panel(**(panel | {"series": [Series(**series) for series in panel["series"]]})) for panel in stage_panels
        ]
        for stage, stage_panels in content["panels"].items()
    }
    content["pairs"] = [
        Pair(pair["prompt"], Response(**pair["correct"]), Response(**pair["wrong"])) for pair in content["pairs"]
    ]
    content["scatters"] = [
        Scatter(**(scatter | {"points": [Point(**point) for point in scatter["points"]]}))
        for scatter in content.get("scatters", [])
    ]
    content["samples"] = [
        Sample(sample["prompt"], [Answer(**answer) for answer in sample["answers"]])
        for sample in content.get("samples", [])
    ]
    return Report(**content)


def _judged(paired: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Comparisons of a report.json with their verdicts, added here where an earlier version wrote none."""
    if all("verdict" in entry for by_measure in paired.values() for entry in by_measure.values()):
        return paired
    unknown = {"standard_error": math.nan, "n": 0}
    table = corrected(
        {
            name: {measure: PairedComparison(**(unknown | entry)) for measure, entry in by_measure.items()}
            for name, by_measure in paired.items()
        }
    )
    return {
        name: {
            measure: entry | {"p_holm": table[name][measure].p_holm, "verdict": table[name][measure].verdict}
            for measure, entry in by_measure.items()
        }
        for name, by_measure in paired.items()
    }
