"""``dpr compare``: which arm gives the best policy, by how much, and how sure are we? Over seeds, from one config."""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml

from dpr_lightning.cli.toy_command import ToyTask, toy
from dpr_lightning.data import open_rows
from dpr_lightning.errors import InputError
from dpr_lightning.experiments.arm_specs import ArmSpec, Recipes
from dpr_lightning.experiments.comparison_page import Examples, curves, pairs, ranked, samples, scatters
from dpr_lightning.experiments.findings import BASE, Results, foresight, pooled, predicted
from dpr_lightning.experiments.recipes import recipe_text
from dpr_lightning.experiments.saved_report import machine, save_report
from dpr_lightning.experiments.seed_results import Measured, identity_of, measured_elsewhere, write_seed
from dpr_lightning.experiments.seed_run import SeedRun
from dpr_lightning.experiments.stages import announce, keep_wandb_inside
from dpr_lightning.paths import REPORT_MARKS, ReadPath, Reads, Writes
from dpr_lightning.reports import Report, arms_table, paired_table, verdict_lines
from dpr_lightning.reports.console import console
from dpr_lightning.rewards.cache import content_hash

PARTS = ("base", "data")
SETTINGS, HEADER = "compare.yaml", "# Written by `dpr compare`"


def compare(
    arms: dict[str, ArmSpec],
    seeds: list[int],
    output: Annotated[
        str,
        Writes("seed_*"),
        Writes(SETTINGS, marks=(HEADER,)),
        Writes("compare.json", marks=('"paired"',)),
        Writes("report.json", "report.html", marks=REPORT_MARKS),
    ] = "runs/compare",
    title: str = "Comparison",
    data: Annotated[str | None, Reads(*PARTS)] = None,
    task: ToyTask = "addition",
    source: ReadPath | None = None,
    demonstrations: int = 400,
    test: int = 400,
    samples: int = 4,
    sft: ReadPath = "toy/sft.yaml",
    dpr: ReadPath = "toy/dpr.yaml",
    self_play: ReadPath = "toy/self_play.yaml",
    home: str = "runs/toy",
    sft_steps: int | None = None,
    dpr_steps: int | None = None,
    preview_samples: int = 16,
    preview_prompts: int = 100,
    pool: list[Annotated[str, Reads("seed_*.json")]] | None = None,
    online: bool = False,
) -> None:
    """Run every arm for every seed from the same SFT run, and compare all of them with SFT.

    Finished parts are not repeated: run the same command to go on after an interruption or after adding arms. Arms
    that train get as many FLOPs as the DPR config costs, counted, unless their changes name `trainer.max_steps`.

    Args:
        arms: by name; each states how it differs from π_SFT.
        seeds: of weights, order and samples, and of the toy's data.
        output: folder for everything.
        title: of the report.
        data: folder with base/ and data/ that all seeds share; None creates the toy for each seed.
        task: of the toy, as for `dpr toy`.
        source: of the toy's task, where it is read from a file.
        demonstrations: of the toy.
        test: prompts of the toy's evaluation.
        samples: answers a prompt, in addition to the greedy one.
        sft: packaged config of SFT.
        dpr: packaged config of DPR that arms with `train: dpr` change.
        self_play: packaged config that arms with `train: self_play` change.
        home: folder that these configs' paths begin with.
        sft_steps: optimizer steps of SFT; None takes the config's.
        dpr_steps: optimizer steps of DPR as its config has it, which set the budget of all arms that train.
        preview_samples: of π_SFT a prompt, to predict where each reward leads; 0 predicts nothing.
        preview_prompts: development prompts that these samples answer.
        pool: folders with `seed_N.json` of seeds that the same comparison measured elsewhere, on another machine for
            example; these are not run again.
        online: send the tables to W&B's server; otherwise its run is saved in the folder.
    """
    options, started = dict(locals()), time.monotonic()
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"`seeds` needs at least one seed, each of them once; found {seeds}.")
    if any(not name.isidentifier() for name in arms):
        raise InputError(f"Arms are named like variables, for files bear their names; found {', '.join(arms)}.")
    if BASE in arms:
        raise InputError(f"{BASE!r} is π_SFT itself, which every comparison has: give this arm another name.")
    if samples < 1:
        raise InputError(f"`samples` must be at least 1 a prompt; found {samples}.")
    folder = Path(output)
    keep_wandb_inside(folder)
    _write_settings(folder, options)
    specs = {BASE: ArmSpec()} | arms
    measured: list[Measured] = []
    examples: Examples = {}
    example_folder: Path | None = None
    recipes = Recipes(sft, dpr, self_play, home, sft_steps, dpr_steps, preview_samples, preview_prompts)
    read = {"data": None if data is None else [_content(data, part) for part in PARTS], "source": _digest(source)}
    fixed = identity_of(options | read, [recipe_text(recipe) for recipe in (sft, dpr, self_play)])
    elsewhere = measured_elsewhere(pool or [], fixed)
    for position, seed in enumerate(seeds, 1):
        announce(f"Seed {seed} ({position} of {len(seeds)})")
        if seed in elsewhere:
            measured.append(elsewhere[seed])
            continue
        run_folder = folder / f"seed_{seed}"
        toy_options = {"task": task, "source": source, "demonstrations": demonstrations, "test": test}
        _prepare(run_folder, data, toy_options, seed)
        run = SeedRun(run_folder, seed, recipes, samples)
        promised = run.promised(specs)
        results = {name: run.result(name, arm) for name, arm in specs.items()}
        measured.append(Measured(results, promised, {name: run.flops(name, arm) for name, arm in specs.items()}))
        write_seed(folder, seed, fixed, measured[-1])
        if example_folder is None:
            example_folder = run_folder
            examples = {name: run.examples(name, arm) for name, arm in specs.items()}
        del run  # frees its models before the next seed trains
    _conclude(folder, title, measured, seeds, specs, examples, example_folder, started)
    _log_tables(folder, title, online)


def _prepare(folder: Path, data: str | None, toy_options: dict[str, Any], seed: int) -> None:
    """Create ``base/`` and ``data/`` of a seed once; refuse a folder that other options created."""
    marker = folder / "prepared.json"
    inputs = toy_options if data is None else {"folder": data, "content": [_content(data, part) for part in PARTS]}
    if marker.is_file():
        previous = json.loads(marker.read_text(encoding="utf-8"))
        if previous != inputs:
            raise InputError(
                f"{folder} was prepared with {previous}, not {inputs}. Choose another `output`, or delete it."
            )
        return
    if data is None:
        toy(str(folder), **toy_options, seed=seed)
    else:
        for part in PARTS:
            shutil.copytree(Path(data) / part, folder / part, dirs_exist_ok=True)
    if len(list(islice(open_rows(folder / "data" / "test.jsonl"), 2))) < 2:
        raise InputError(f"{folder}/data/test.jsonl has one row: a comparison pairs at least two prompts.")
    marker.write_text(json.dumps(inputs) + "\n", encoding="utf-8")


def _write_settings(folder: Path, options: Mapping[str, Any]) -> None:
    """Write the options of the command as a config that repeats it."""
    arms = {
        name: {key: value for key, value in dataclasses.asdict(arm).items() if value != getattr(ArmSpec(), key)}
        for name, arm in options["arms"].items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({**options, "arms": arms}, sort_keys=False, allow_unicode=True)
    (folder / SETTINGS).write_text(f"{HEADER}\n{text}", encoding="utf-8")


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _digest(source: str | None) -> str | None:
    """Hash of a file's content, independent of its path; a name that is no file as it is."""
    if source is None or not Path(source).is_file():
        return source
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def _content(data: str, part: str) -> str:
    if not (Path(data) / part).is_dir():
        raise InputError(f"`data` is a folder with base/ and data/, as `dpr toy` writes; {data} has no {part}/.")
    return content_hash(Path(data) / part)


def _conclude(
    folder: Path,
    title: str,
    measured: Sequence[Measured],
    seeds: list[int],
    specs: Mapping[str, ArmSpec],
    examples: Examples,
    example_folder: Path | None,
    started: float,
) -> None:
    """Print tables; write compare.json, and report.html with examples and curves of the seed in ``example_folder``."""
    results: Results = {name: [seed.results[name] for seed in measured] for name in specs}
    flops, promised = measured[0].flops, [seed.promised for seed in measured]
    means = {
        name: {key: _mean([run[key] for run in runs]) for key in ("greedy", "sampled", "length", "reverse_kl")}
        | {"teraflops": flops[name] / 1e12}
        for name, runs in results.items()
    }
    paired, settings = pooled(results, BASE), {name: dataclasses.asdict(arm) for name, arm in specs.items()}
    preview = predicted(results, promised)
    content = {"arms": means, "paired": paired, "preview": preview, "seeds": seeds, "settings": settings}
    (folder / "compare.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    console.print(arms_table(means))
    console.print(paired_table(paired))
    foreseen, order = foresight(preview), ranked(means)
    verdict = "\n".join(verdict_lines(paired, BASE))
    console.print(verdict, highlight=False)
    console.print(foreseen, highlight=False)
    report = save_report(
        folder,
        Report(
            title=title,
            verdict=verdict,
            arms=means,
            paired=paired,
            scatters=scatters(examples, specs, means, preview) if example_folder else [],
            samples=samples(examples, order) if example_folder else [],
            panels=curves(example_folder, specs, order) if example_folder else {},
            pairs=pairs(examples) if example_folder else [],
            commands=[f"dpr compare --config {folder / SETTINGS}"],
            settings=settings,
            machine=machine(),
            notes=[
                f"Seeds: {', '.join(map(str, seeds))}. Scores are means over them.",
                "Intervals are 95%, paired by prompt; with several seeds, prompts and seeds both count as random.",
                "FLOPs are those of an arm's training after SFT in the first seed: counted over eight steps, times the "
                "steps.",
                foreseen,
            ],
        ),
    )
    console.print(f"\n[bold]Done in {time.monotonic() - started:.0f} s.[/bold]")
    console.print(f"  report: {report}\n  numbers: {folder / 'compare.json'}", highlight=False)


def _log_tables(folder: Path, title: str, online: bool) -> None:
    """Log the tables of compare.json as a run of W&B."""
    import wandb

    content = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    arms = [{"arm": name, **scores} for name, scores in content["arms"].items()]
    paired = [
        {"comparison": pair, "measure": measure, **comparison}
        for pair, measures in content["paired"].items()
        for measure, comparison in measures.items()
    ]
    mode: Literal["online", "offline"] = "online" if online else "offline"
    with wandb.init(project="dpr-lightning", name=title, job_type="compare", dir=str(folder), mode=mode) as run:
        for name, rows in (("arms", arms), ("paired", paired)):
            columns = list(rows[0]) if rows else []
            run.log({name: wandb.Table(columns=columns, data=[[row[key] for key in columns] for row in rows])})
