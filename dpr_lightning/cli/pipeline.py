"""The stages from an SFT config to a report that quickstart and smollm2 share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpr_lightning.errors import counted
from dpr_lightning.experiments.background import run_in_background
from dpr_lightning.experiments.recipes import DprSettings, continued_config, equal_compute_steps, on_cpu, stage_config
from dpr_lightning.experiments.stages import ARMS, announce, conclude, evaluate_policies, fit, preview
from dpr_lightning.policies import load_tokenizer

BACKGROUND_LOG = "beside.log"
CONTROLS = tuple(name for name in ARMS if name != "dpr")
"""Arms that do not depend on Dense-Path REINFORCE."""


def run_path(
    folder: Path,
    sft_config: Path,
    dpr_source: str,
    home: str,
    *,
    title: str,
    command: str,
    started: float,
    options: Mapping[str, Any],
    online: bool = False,
) -> None:
    """Run stages 2 to 6: SFT, preview, Dense-Path REINFORCE, continued SFT, evaluation; then write the report.

    Args:
        folder: of the run, with ``data/``.
        sft_config: config of the SFT stage, in ``folder``.
        dpr_source: packaged config of the DPR stage.
        home: folder that the packaged config's paths begin with.
        title: of the report.
        command: that repeats the run.
        started: ``time.monotonic()`` at its start.
        options: of the command: ``seed``, ``test``, ``samples``, ``dpr_steps``, ``preview_prompts``,
            ``preview_samples``, ``contrast_strength``, ``low_temperature``, and more for the record.
        online: W&B runs are uploaded.
    """
    seed = int(options["seed"])
    announce("2/6  Supervised fine-tuning, keeping earlier checkpoints as references")
    fit(sft_config)
    sft = folder / "sft" / "policies" / "final"
    dpr_config = stage_config(
        dpr_source, home, folder, seed, {"trainer.max_steps": options["dpr_steps"]}, online=online
    )
    settings = DprSettings.read(dpr_config)

    announce("3/6  The reward those checkpoints hold, and where it would lead: before any reinforcement learning")
    preview_run, questions = preview(
        settings,
        sft,
        folder / "data" / "development.jsonl",
        limit=options["preview_prompts"],
        samples=options["preview_samples"],
        seed=seed,
    )

    steps = equal_compute_steps(dpr_config, sft_config)
    continued = continued_config(folder, seed, sft_config, sft, steps)
    evaluation = {
        "strength": options["contrast_strength"],
        "low_temperature": options["low_temperature"],
        "samples": options["samples"],
        "seed": seed,
    }
    announce("4/6  Dense-Path REINFORCE")
    with run_in_background(folder / BACKGROUND_LOG, allowed=on_cpu(dpr_config)) as begin:
        control = begin(fit, continued)
        controls = begin(evaluate_policies, folder, sft, settings, CONTROLS, **evaluation)
        fit(dpr_config)

        announce("5/6  Control: continued SFT at equal compute")
        control()

        announce(f"6/6  Evaluation on {counted(options['test'], 'prompt')} that nothing was trained on")
        trained = evaluate_policies(folder, sft, settings, ["dpr"], **evaluation)
        results = controls() | trained
    conclude(
        folder,
        title=title,
        started=started,
        seed=seed,
        results=results,
        settings=settings,
        preview_run=preview_run,
        questions=questions,
        sft=sft,
        tokenizer=load_tokenizer(str(sft)),
        continued_steps=steps,
        commands=[
            command,
            *(f"dpr fit --config {config}" for config in (sft_config, dpr_config, continued)),
        ],
        options=options,
    )
