"""Reports in a run folder: written as a page and as JSON, and read again."""

import dataclasses
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch

from dpr_lightning.evaluation.comparisons import corrected
from dpr_lightning.evaluation.statistics import PairedComparison
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


def load_report(path: Path) -> Report:
    """Read a report.json."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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
    content["rollouts"] = [Response(**response) for response in content.get("rollouts", [])]
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
