"""An experiment: arms that start from one SFT run, over seeds, judged together; quickstart and compare run one."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dpr_lightning.data import open_rows
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.comparisons import compare_arms, to_records
from dpr_lightning.experiments.arm_configs import RESERVED
from dpr_lightning.experiments.arm_specs import BASE, ArmSpec, check_dependencies
from dpr_lightning.experiments.background import run_in_background
from dpr_lightning.experiments.comparison_page import FirstSeed, page
from dpr_lightning.experiments.predictions import SeedPreview, foresight, predicted
from dpr_lightning.experiments.recipes import Recipes, read_config
from dpr_lightning.experiments.run_folder import BACKGROUND_LOG, announce, keep_wandb_inside
from dpr_lightning.experiments.saved_report import save_report
from dpr_lightning.experiments.seed_results import Measured, identity_of, measured_elsewhere, write_seed
from dpr_lightning.experiments.seed_run import ArmRun, SeedRun
from dpr_lightning.reports import arms_table, paired_table, preview_table, verdict_lines
from dpr_lightning.reports.console import console


@dataclass(frozen=True)
class Experiment:
    """What is run.

    Args:
        title: of the page.
        folder: for everything.
        arms: by name; each states how it differs from π_SFT.
        seeds: of weights, order and samples.
        recipes: the configs that the arms change.
        prepare: writes ``base/`` and ``data/`` of a seed into a folder, unless they are there.
        commands: command lines that repeat it, for the page.
        samples: answers a prompt, in addition to the greedy one.
        focus: the arm that is compared with every other arm as well. It trains in this process while the other arms
            are trained and evaluated in another one, where a core is free.
        options: of the command; seeds with the same options can be pooled.
        pool: folders with the files of seeds that were measured elsewhere.
        online: send the tables to W&B's server.
        flat: the files of the only seed lie in ``folder`` itself.
    """

    title: str
    folder: Path
    arms: Mapping[str, ArmSpec]
    seeds: Sequence[int]
    recipes: Recipes
    prepare: Callable[[Path, int], None]
    commands: Sequence[str]
    samples: int
    focus: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pool: Sequence[str] = ()
    online: bool = False
    flat: bool = False

    def __post_init__(self) -> None:
        """Refuse seeds, names and numbers that no experiment can have."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"`seeds` needs at least one seed, each of them once; found {list(self.seeds)}.")
        if any(not name.isidentifier() for name in self.arms):
            raise InputError(
                f"Arms are named like variables, for files bear their names; found {', '.join(self.arms)}."
            )
        if BASE in self.arms:
            raise InputError(f"{BASE!r} is π_SFT itself, which every comparison has: give this arm another name.")
        if reserved := sorted(RESERVED & set(self.arms)):
            raise InputError(f"Arm {reserved[0]!r} has the name of a folder of each seed: give it another name.")
        if self.focus is not None and self.focus not in self.arms:
            raise InputError(f"`focus` is {self.focus!r}, and the arms are {', '.join(self.arms)}: name one of them.")
        check_dependencies(self.specs, self.focus)
        if self.samples < 1:
            raise InputError(f"`samples` must be at least 1 a prompt; found {self.samples}.")

    @property
    def specs(self) -> dict[str, ArmSpec]:
        """All arms, π_SFT first."""
        return {BASE: ArmSpec(), **self.arms}


@dataclass(frozen=True)
class Outcome:
    """Results of an experiment as plain data.

    Attributes:
        arms: means over the seeds: accuracies, tokens, nats, teraflops.
        paired: by ``"a - b"`` and measure the difference, its interval, ``p_holm`` and verdict.
        verdict: the same in sentences.
        preview: promised and reached gains, by arm and seed.
        report: the page.
    """

    arms: dict[str, dict[str, float | None]]
    paired: dict[str, Any]
    verdict: str
    preview: dict[str, Any]
    report: Path


def run_experiment(experiment: Experiment) -> Outcome:
    """Run every arm for every seed from the same SFT run, and compare all of them with π_SFT.

    Finished parts are not repeated. Arms that train get as many FLOPs as the DPR recipe costs, counted, unless their
    changes name ``trainer.max_steps`` or they have ``steps_multiple``.

    Raises:
        InputError: an arm's recipe, checkpoint or option does not exist, or a pooled seed is of another experiment.
    """
    started = time.monotonic()
    experiment.folder.mkdir(parents=True, exist_ok=True)
    keep_wandb_inside(experiment.folder)
    specs, identity = experiment.specs, identity_of(experiment.options, experiment.recipes, experiment.arms)
    elsewhere = measured_elsewhere(experiment.pool, identity)
    measured: list[Measured] = []
    first: FirstSeed | None = None
    for position, seed in enumerate(experiment.seeds, 1):
        if seed in elsewhere:
            measured.append(elsewhere[seed])
            continue
        announce(f"Seed {seed} ({position} of {len(experiment.seeds)}): base policy and demonstrations")
        folder = experiment.folder if experiment.flat else experiment.folder / f"seed_{seed}"
        experiment.prepare(folder, seed)
        test = folder / "data" / "test.jsonl"
        if len(list(islice(open_rows(test), 2))) < 2:
            raise InputError(f"{test} has one row: a comparison pairs at least two prompts.")
        preview, runs = _run_seed(experiment, folder, seed)
        results, flops = (
            {name: run.result for name, run in runs.items()},
            {name: run.flops for name, run in runs.items()},
        )
        measured.append(Measured(results, preview.promises, flops))
        write_seed(experiment.folder, seed, identity, measured[-1])
        if first is None:
            first = FirstSeed(folder, preview, {name: run.examples for name, run in runs.items()})
    outcome = _conclude(experiment, specs, measured, first)
    _log_tables(experiment, outcome)
    console.print(
        f"\n[bold]Done in {time.monotonic() - started:.0f} s.[/bold]\n  report: {outcome.report}", highlight=False
    )
    return outcome


def _run_seed(experiment: Experiment, folder: Path, seed: int) -> tuple[SeedPreview, dict[str, ArmRun]]:
    """Train π_SFT, preview the rewards, then train and evaluate every arm of one seed."""
    specs, focus = experiment.specs, experiment.focus
    announce("Supervised fine-tuning, keeping earlier checkpoints as references")
    run = SeedRun(folder, seed, experiment.recipes, experiment.samples, specs)
    preview = run.preview(specs)
    if focus is not None and preview.table is not None:
        announce("The reward those checkpoints hold, and where it would lead: before any reinforcement learning")
        console.print(preview_table(preview.table))
        console.print(preview.words, highlight=False)
    announce("Arms: training at equal compute, and answers to the test prompts")
    if focus is None:
        return preview, {name: run.run(name, spec) for name, spec in specs.items()}
    on_cpu = read_config(run.configs.arm(focus, specs[focus]))["trainer"].get("accelerator") == "cpu"
    with run_in_background(folder / BACKGROUND_LOG, allowed=on_cpu) as begin:
        controls = [name for name in specs if name != focus]
        work = {
            name: begin(run_arm, folder, seed, experiment.recipes, experiment.samples, specs, name) for name in controls
        }
        for other in specs[focus].depends_on:
            work[other].result()
        runs = {focus: run.run(focus, specs[focus])}
        # What has not begun there meanwhile is done here, first what needs no other arm. An arm that others need stays
        # there.
        needed = {other for spec in specs.values() for other in spec.depends_on}
        free = [name for name in reversed(controls) if name not in needed]
        for name in sorted(free, key=lambda name: bool(specs[name].depends_on)):
            for other in specs[name].depends_on:
                work[other].result()
            if work[name].cancel():
                runs[name] = run.run(name, specs[name])
        runs |= {name: work[name].result() for name in controls if name not in runs}
    return preview, {name: runs[name] for name in specs}


def run_arm(folder: Path, seed: int, recipes: Recipes, samples: int, arms: Mapping[str, ArmSpec], name: str) -> ArmRun:
    """Train and evaluate one arm of a seed whose π_SFT is trained."""
    return SeedRun(folder, seed, recipes, samples, arms).run(name, arms[name])


def _conclude(
    experiment: Experiment, specs: Mapping[str, ArmSpec], measured: Sequence[Measured], first: FirstSeed | None
) -> Outcome:
    """Compare the arms, print the tables, and write the page."""
    results = {name: [seed.results[name] for seed in measured] for name in specs}
    means = {
        name: {key: _mean([run[key] for run in runs]) for key in ("greedy", "sampled", "length", "reverse_kl")}
        | {"teraflops": measured[0].flops[name] / 1e12}
        for name, runs in results.items()
    }
    paired = pooled(results, BASE, experiment.focus)
    longer_sft = [name for name, spec in specs.items() if spec.is_longer_sft]
    fixed = [BASE] if experiment.focus is None else [BASE, experiment.focus]
    verdict = "\n".join(dict.fromkeys(line for arm in fixed for line in verdict_lines(paired, arm, longer_sft)))
    preview = predicted(results, [seed.promised for seed in measured])
    announce("Results")
    console.print(arms_table(means))
    console.print(paired_table(paired))
    console.print(verdict, highlight=False)
    if preview["all"]["runs"] > 1:
        console.print(foresight(preview), highlight=False)
    content = page(
        experiment.title, experiment.seeds, specs, means, paired, verdict, preview, first, experiment.commands
    )
    return Outcome(means, paired, verdict, preview, save_report(experiment.folder, content))


def pooled(
    results: Mapping[str, list[dict[str, Any]]], base: str, focus: str | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Compare every arm with ``base``, and with ``focus``, over the seeds by :func:`compare_arms`; plain data.

    Args:
        results: of each arm, one entry a seed with scores ``by_prompt`` of each measure.
        base: the arm that all other arms are compared with.
        focus: an arm that is compared with all others, too.
    """
    scores = {name: [run["by_prompt"] for run in runs] for name, runs in results.items()}
    return to_records(compare_arms(scores, base, focus))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _log_tables(experiment: Experiment, outcome: Outcome) -> None:
    """Log the tables as a run of W&B."""
    import wandb

    arms = [{"arm": name, **scores} for name, scores in outcome.arms.items()]
    paired = [
        {"comparison": pair, "measure": measure, **comparison}
        for pair, measures in outcome.paired.items()
        for measure, comparison in measures.items()
    ]
    mode: Literal["online", "offline"] = "online" if experiment.online else "offline"
    options: dict[str, Any] = {"dir": str(experiment.folder), "mode": mode, "job_type": "compare"}
    with wandb.init(project="dpr-lightning", name=experiment.title, **options) as run:
        for name, rows in (("arms", arms), ("paired", paired)):
            columns = list(rows[0]) if rows else []
            run.log({name: wandb.Table(columns=columns, data=[[row[key] for key in columns] for row in rows])})
