"""``dpr report``: the page of a run folder, from its report.json or from what its stages recorded."""

from pathlib import Path
from typing import Annotated

from dpr_lightning.errors import InputError
from dpr_lightning.experiments.run_report import run_report
from dpr_lightning.experiments.saved_report import load_report
from dpr_lightning.paths import REPORT_MARKS, Reads, Writes
from dpr_lightning.reports import write_report
from dpr_lightning.reports.console import console


def report(
    run: Annotated[
        str,
        Reads(
            "report.json",
            "**/metrics.csv",
            "**/hparams.yaml",
            "**/rollout_samples.jsonl",
            "check/*.json",
            "**/run.json",
        ),
    ],
    output: Annotated[str | None, Writes(marks=REPORT_MARKS)] = None,
) -> None:
    """Write the HTML report of a run folder: of a quickstart, or the curves and samples of a training run.

    Args:
        run: folder of the run.
        output: HTML file; report.html in the run folder by default.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise InputError(f"There is no run folder {run!r}.")
    target = Path(output) if output is not None else folder / "report.html"
    saved = folder / "report.json"
    content = load_report(saved) if saved.is_file() else run_report(folder)
    console.print(f"Report: {write_report(target, content)}")
