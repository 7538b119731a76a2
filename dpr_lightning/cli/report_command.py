"""``dpr report``: the page of a run folder, written again from its report.json or from its curves."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml

from dpr_lightning.errors import InputError
from dpr_lightning.experiments.saved_report import load_report, machine
from dpr_lightning.experiments.training_curves import DPR_PANELS, SFT_PANELS, panels
from dpr_lightning.paths import REPORT_MARKS, Reads, Writes
from dpr_lightning.reports import (
    Panel,
    Report,
    write_report,
)
from dpr_lightning.reports.console import console


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
    content = load_report(saved) if saved.is_file() else _from_curves(folder)
    console.print(f"Report: {write_report(target, content)}")


def _from_curves(folder: Path) -> Report:
    panels_of: dict[str, list[Panel]] = {}
    records: dict[str, dict[str, Any]] = {}
    layout = tuple(dict.fromkeys((*SFT_PANELS, *DPR_PANELS)))  # each has the gradient's norm
    for path in sorted(folder.rglob("metrics.csv")):
        curves = panels(path, layout)
        if curves:
            stage = str(path.parent.relative_to(folder)) if path.parent != folder else folder.name
            panels_of[stage] = curves
            if (record := path.with_name("hparams.yaml")).is_file():
                records[stage] = yaml.safe_load(record.read_text(encoding="utf-8")) or {}
    if not panels_of and (table := next(folder.rglob("metrics.csv"), None)) is not None:
        raise InputError(
            f"{table} has no curve of a training run. Curves have a point every `trainer.log_every_n_steps` steps "
            "(Lightning's default: 50): lower it for a short run."
        )
    if not panels_of:
        raise InputError(
            f"{folder} has neither report.json nor a metrics.csv with curves. `dpr fit` writes one unless `run.csv` is "
            "false or `trainer.logger` names other loggers."
        )
    return Report(
        title=f"Run {folder.name}",
        verdict="Curves of a training run.",
        panels=panels_of,
        commands=[record["command"] for record in records.values() if "command" in record],
        settings=records,
        machine=machine(),
        notes=[f"{stage}: {'; '.join(_origin(record))}." for stage, record in records.items()],
    )


def _origin(record: Mapping[str, Any]) -> Iterator[str]:
    """What a run came from: commit, config files, seed, and hashes of the files that it read."""
    git = record.get("git")
    if git is not None:
        yield f"commit {git['commit'][:12]}{', with files changed since' if git['dirty'] else ''}"
    else:
        yield "no git repository"
    if record.get("config_files"):
        yield f"config {', '.join(record['config_files'])}"
    yield f"seed {record.get('seed_everything')}"
    for option, content in (record.get("content") or {}).items():
        yield f"{option.replace('.init_args', '')} {content}"
