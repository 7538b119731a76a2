"""The report of a training run: the curves, samples and records of its stages, and its check, from the run's folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dpr_lightning.errors import InputError
from dpr_lightning.experiments.training_curves import DPR_PANELS, SFT_PANELS, panels
from dpr_lightning.reports import Panel, Report, Response
from dpr_lightning.reports.metrics_table import first_to_last, read_curves
from dpr_lightning.run_manifest import CHECK, MANIFEST, PREVIEW, TRAINED, RunManifest

METRICS, RECORD, SAMPLES = "metrics.csv", "hparams.yaml", "rollout_samples.jsonl"
EVALUATIONS = ("validate", "test")
"""Folders of `dpr validate` and `dpr test` in that of a stage; their tables have one point a metric, and no curve."""
ORDER = {stage: index for index, stage in enumerate(reversed(TRAINED))}
SAMPLED_STEPS = 8
"""Steps of which the page has samples: the first, the last, and as far apart as there are."""


class Stage(NamedTuple):
    """A folder with a table of metrics: its heading on the page, its ``folder`` and what its loggers recorded."""

    name: str
    folder: Path
    record: Mapping[str, Any]


def run_report(folder: Path) -> Report:
    """The page of all stages under a folder, in the order in which they ran.

    Raises:
        InputError: there is no table of metrics, or none has a curve.
    """
    stages = _stages(folder)
    layout = tuple(reversed(dict.fromkeys(reversed((*SFT_PANELS, *DPR_PANELS)))))  # the last of those that are in both
    curves: dict[str, list[Panel]] = {stage.name: panels(stage.folder / METRICS, layout) for stage in stages}
    if stages and not any(curves.values()):
        raise InputError(
            f"{stages[0].folder / METRICS} has no curve of a training run. Curves have a point every "
            "`trainer.log_every_n_steps` steps (Lightning's default: 50): lower it for a short run."
        )
    if not stages:
        raise InputError(
            f"{folder} has neither report.json nor a {METRICS} with curves. `dpr fit` writes one unless `run.csv` is "
            "false or `trainer.logger` names other loggers."
        )
    preview = _preview(folder)
    return Report(
        title=f"Run {folder.resolve().name}",
        verdict="\n".join([*filter(None, map(_measured, stages)), *_on_sft(folder, stages), *_check(folder)])
        or "Curves of a training run.",
        preview=preview,
        preview_words=str(preview["verdict"]) if preview is not None else "",
        panels={name: plots for name, plots in curves.items() if plots},
        rollouts=[response for stage in stages for response in _samples(stage)],
        commands=[stage.record["command"] for stage in stages if "command" in stage.record],
        records={stage.name: _facts(stage.record) for stage in stages if stage.record},
        settings={stage.name: _options(stage.record) for stage in stages if stage.record},
    )


def _stages(folder: Path) -> list[Stage]:
    tables = [path for path in folder.rglob(METRICS) if path.parent == folder or path.parent.name not in EVALUATIONS]
    folders = sorted((path.parent for path in tables), key=lambda path: (path.parent, ORDER.get(path.name, 0), path))
    stages = []
    for stage in folders:
        path = stage / RECORD
        try:
            record = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
        except yaml.YAMLError as error:
            raise InputError(f"{path} is not a record that this package writes. Move it away.") from error
        record = record if isinstance(record, dict) else {}
        name = str(stage.relative_to(folder)) if stage != folder else stage.resolve().name
        module = str(record["model"].get("class_path", "")) if isinstance(record.get("model"), dict) else ""
        stages.append(Stage(f"{name}: {module.rpartition('.')[2]}" if module else name, stage, record))
    return stages


def _measured(stage: Stage) -> str:
    """The first and last values of a stage, as a sentence."""
    parts = first_to_last(read_curves(stage.folder / METRICS))
    return f"{stage.name}, first → last: {', '.join(parts)}." if parts else ""


def _on_sft(folder: Path, stages: Sequence[Stage]) -> list[str]:
    """Whether SFT was finished, as `dpr fit` said at its end."""
    paths = dict.fromkeys(path / MANIFEST for path in (folder, *(stage.folder for stage in stages)))
    verdicts = [RunManifest.load(path).finished_sft for path in paths if path.is_file()]
    return [f"Is SFT finished? {verdict['reason']}" for verdict in verdicts if verdict is not None]


def _check(folder: Path) -> list[str]:
    """The reasons that `dpr check` gave."""
    reasons = _read(folder / CHECK).get("reasons", [])
    return [f"Check before reinforcement learning: {' '.join(reasons)}"] if reasons else []


def _preview(folder: Path) -> dict[str, Any] | None:
    content = _read(folder / PREVIEW)
    return content if content.get("rewards") and content.get("verdict") else None


def _read(path: Path) -> dict[str, Any]:
    """The content of a file of `dpr check`; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged. Run `dpr check` again, or delete it.") from error
    return content


def _samples(stage: Stage) -> list[Response]:
    """Samples of a stage at several steps, in order, labelled by the step."""
    path = stage.folder / SAMPLES
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
    # What follows the last line break is a row that is being written, or that a run which was killed cut short.
    rows = [row for line in lines[:-1] if (row := json.loads(line)).get("token_rewards")]
    steps = sorted({row["step"] for row in rows})
    count = min(len(steps), SAMPLED_STEPS)
    selected = {steps[round(index * (len(steps) - 1) / max(count - 1, 1))] for index in range(count)}
    return [
        Response(
            tokens=[token for token, _ in row["token_rewards"]],
            reward=[reward for _, reward in row["token_rewards"]],
            prompt=row["prompt"],
            correct=None if row["score"] is None else row["score"] > 0.5,
            label=f"step {row['step']:,}",
        )
        for row in rows
        if row["step"] in selected
    ]


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage came from, its command aside: code, config, seed, hashes of the files that it read, versions."""
    git = record.get("git")
    changed = ", with files changed since" if git and git["dirty"] else ""
    facts = {
        "commit": f"{git['commit'][:12]}{changed}" if git else "no git repository",
        "config": ", ".join(record.get("config_files") or []),
        "seed": record.get("seed_everything"),
        **{option.replace(".init_args", ""): content for option, content in (record.get("content") or {}).items()},
        "versions": ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items()),
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _options(record: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a stage that are set."""
    return {section: _set(record[section]) for section in ("model", "data", "trainer", "run") if section in record}


def _set(options: Any) -> Any:
    if isinstance(options, dict):
        return {name: _set(value) for name, value in options.items() if value is not None}
    return options
