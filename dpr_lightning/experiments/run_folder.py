"""The folder of an experiment: which files are its own, and the commands that run in it."""

import logging
import os
from pathlib import Path

from dpr_lightning.errors import InputError
from dpr_lightning.experiments.json_cache import cached, write_cached
from dpr_lightning.folders import clear_run
from dpr_lightning.lightning_cli.dpr_cli import run_lightning
from dpr_lightning.locking import LOCK
from dpr_lightning.reports.console import console

log = logging.getLogger(__name__)
BACKGROUND_LOG = "background.log"
STAGE_FILES = (
    "metrics.csv", "hparams.yaml", "config.yaml", "rollout_samples.jsonl", "non_finite.jsonl", "micro_batches.json",
    *(f"{evaluation}/{name}" for evaluation in ("validate", "test") for name in ("metrics.csv", "hparams.yaml")),
    "begun.json", "done.json", LOCK, "lightning_logs/**/*",
    "policies/references.json", "policies/final", "policies/ema", "policies/interrupted", "policies/best",
    "policies/step_*", "held_out.jsonl", "run.json",
    "checkpoints/*step_*/manifest.json", "checkpoints/*step_*/metrics_?.csv", "checkpoints/*step_*/state.ckpt",
    "checkpoints/*step_*/state.ckpt/**/*",
)  # fmt: skip
"""Patterns of the files that one training run writes to its folder, for :func:`dpr_lightning.folders.clear_run`."""
STAGES = (
    "sft", "dpr", "continued_sft", "trimmed", "cleaned", "cleaned_random", "cleaned_small_loss", "cleaned_oracle",
)  # fmt: skip
"""Trainings of quickstart and smollm2, a folder each."""
RUN_FILES = (
    "metrics.json", "report.json", "report.html", BACKGROUND_LOG, "base", "configs",
    "prepared.json", "preview.json", "seed_*.json", "results/*.json", "examples/*.json", "flops/*.json",
    "cleaned_rows/*.json", "cleaned_rows/*.jsonl",
    *(
        f"data/{split}.jsonl"
        for split in ("test", "development", "prompts", "demonstrations", "oracle_masked", "oracle_dropped")
    ),
    *(f"{stage}/{name}" for stage in STAGES for name in STAGE_FILES),
    "wandb/**/*", "cache/*", LOCK,
)  # fmt: skip
"""Patterns of the files that quickstart or smollm2 writes to its folder."""


def announce(title: str) -> None:
    """Print a rule with the name of the stage that begins."""
    console.rule(f"[bold]{title}", align="left")


def fit(config: Path) -> None:
    """Run `dpr fit`, and end its W&B run, since the next stage starts another one."""
    import wandb

    console.print(f"dpr fit --config {config}", style="dim", highlight=False)
    run_lightning(["fit", "--config", str(config)])
    wandb.finish()


def train_once(config: Path, folder: Path, key: str) -> None:
    """Run `dpr fit`, unless the same training has ended; an interrupted one goes on from its checkpoint.

    Args:
        config: of the training.
        folder: that it writes to; files of a training with another key are deleted there.
        key: of everything that the training depends on.
    """
    begun, done = folder / "begun.json", folder / "done.json"
    if cached(done, key) is None:
        if folder.exists() and cached(begun, key) is None:
            clear_run(folder, STAGE_FILES)
        write_cached(begun, key, {})
        fit(config)
        write_cached(done, key, {})


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
