"""``dpr gap``: is right easier to recognise than to write? Global and local reward models, offline and online DPO."""

import json
from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.table import Table

from dpr_lightning.data import Rows
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.comparisons import compare_arms, to_records
from dpr_lightning.evaluation.verifiers import verifier_named
from dpr_lightning.experiments.run_folder import keep_wandb_inside
from dpr_lightning.experiments.saved_report import machine, save_report
from dpr_lightning.experiments.verification_gap import OFFLINE, SFT, GapSpec, check_gap, run_seed, split_pairs
from dpr_lightning.paths import REPORT_MARKS, ReadPath, Writes
from dpr_lightning.reports import Panel, Report, Series, arms_table, paired_table, verdict_lines
from dpr_lightning.reports.console import console
from dpr_lightning.rollouts import SamplingOptions

GAP = "online_global - offline"
SCORERS = ("global", "local", "oracle")
NOTES = (
    "global: a verifier head. local: the log-ratio of the offline policy, a reward model that generates. oracle: the "
    "verifier, a ceiling; on held-out pairs its likelihood is at the scale that fits the pairs to learn best.",
    "Offline and online policies have one loss, β, learning rate and number of steps; only the pairs differ. Online "
    "pairs are the best and the worst of a prompt's responses, and no more than the offline ones.",
)


def gap(
    policy: ReadPath,
    pairs: Rows,
    test: Rows,
    verifier: str,
    output: Annotated[
        str,
        Writes("data", "seed_*"),
        Writes("gap.json", marks=('"gap"',)),
        Writes("report.json", "report.html", marks=REPORT_MARKS),
    ],
    dpo: ReadPath = "toy/dpo.yaml",
    head: ReadPath = "toy/reward_model.yaml",
    steps: int | None = None,
    candidates: int = 16,
    samples: int = 8,
    held_out: float = 0.2,
    seeds: tuple[int, ...] = (1, 2, 3),
    max_new_tokens: int = 256,
    stop_strings: tuple[str, ...] = (),
    batch_size: int = 256,
    columns: dict[str, str] | None = None,
) -> None:
    """How much online preferences by a reward model gain over DPO on the pairs that this model learnt from.

    Finished parts are not repeated: the same command goes on after an interruption.

    Args:
        policy: folder of π_SFT.
        pairs: file of preferences, as `dpr pairs` writes them or with the verifier's columns.
        test: file of prompts to answer, with what the verifier needs.
        verifier: name of a verifier or module:function; the oracle.
        output: folder for all trainings, gap.json and report.html.
        dpo: config of DPO on a file of pairs, packaged or a file; its policy, rows and seed are replaced.
        head: the same, of the verifier head.
        steps: optimizer steps of each training; those of the configs where it is left out.
        candidates: responses to each prompt, of which the best and the worst are an online pair.
        samples: answers to each test prompt, and the largest n of the best of n.
        held_out: share of the prompts of pairs on which the scorers are measured.
        seeds: of weights, order and samples.
        max_new_tokens: length limit of a response.
        stop_strings: texts that end a response.
        batch_size: responses decoded at once.
        columns: names of columns in the files.
    """
    if samples < 2 or candidates < 2:
        raise InputError(f"`samples` is {samples} and `candidates` {candidates}: each takes 2 or more.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"`seeds` needs at least one seed, each of them once; found {list(seeds)}.")
    if steps is not None and steps < 1:
        raise InputError(f"`steps` is {steps}: it is a number of optimizer steps, 1 or more.")
    verifier_named(verifier)
    sampling = SamplingOptions(max_new_tokens, batch_size=batch_size, stop_strings=stop_strings)
    spec = GapSpec(policy, pairs, test, verifier, dpo, head, steps, candidates, held_out, samples, sampling, columns)
    check_gap(spec)
    folder = Path(output)
    keep_wandb_inside(folder)
    rows = split_pairs(spec, folder / "data")
    results = [run_seed(spec, rows, folder / f"seed_{seed}", seed) for seed in seeds]
    shared = [name for name in results[0].arms if all(name in result.arms for result in results)]
    arms = {name: _means([result.arms[name] for result in results]) for name in shared}
    paired = to_records(compare_arms({name: [result.scores[name] for result in results] for name in arms}, OFFLINE))
    fits = {name: _means([result.fits[name] for result in results]) for name in SCORERS}
    curves = {name: _means([result.rankings[name]["best_of"] for result in results]) for name in results[0].rankings}
    words = "\n".join([_gap_words(paired[GAP]), _fit_words(fits), *verdict_lines(paired, OFFLINE)])
    console.print(arms_table(arms, "Test prompts", highlight="online_global"))
    console.print(paired_table(paired))
    console.print(_scorers_table(fits, curves))
    console.print(words, highlight=False)
    counts = {name: [result.counts[name] for result in results] for name in arms if name != SFT}
    saved: dict[str, Any] = {"gap": paired[GAP], "arms": arms, "paired": paired, "scorers": fits, "best_of": curves}
    saved |= {"pairs": counts, "seeds": list(seeds), "verdict": words}
    (folder / "gap.json").write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
    content = Report(
        title="Generation–verification gap",
        verdict=words,
        arms=arms,
        paired=paired,
        panels={"Scorers": _panels(curves)},
        settings={"policy": policy, "pairs": pairs, "test": test, "verifier": verifier, "dpo": dpo, "head": head}
        | {"steps": steps, "candidates": candidates, "samples": samples, "held_out": held_out, "seeds": list(seeds)}
        | {"max_new_tokens": max_new_tokens, "stop_strings": list(stop_strings)},
        machine=machine(),
        notes=[*NOTES, f"Pairs of each seed: {', '.join(f'{name} {numbers}' for name, numbers in counts.items())}."],
    )
    console.print(f"  report: {save_report(folder, content)}", highlight=False)


def _gap_words(entry: Mapping[str, Mapping[str, Any]]) -> str:
    """The gap in a sentence: of sampled answers, which vary least."""
    sampled = entry["sampled"]
    meanings = {
        "better": "there is a gap: a scorer of whole responses learns from these pairs what DPO does not",
        "worse": "online is worse: the policy found what the head scores too high",
    }
    return (
        f"gap = online_global − offline = {sampled['difference']:+.3f} of sampled answers, 95% interval "
        f"{sampled['low']:+.3f} to {sampled['high']:+.3f}: {meanings.get(sampled['verdict'], 'no gap is detected')}."
    )


def _fit_words(fits: Mapping[str, Mapping[str, float | None]]) -> str:
    """Which reward model predicts held-out pairs better."""
    likelihood = {name: fits[name]["likelihood"] for name in SCORERS}
    return (
        f"Held-out pairs: {likelihood['global']:.3f} nats a pair by the head, {likelihood['local']:.3f} by the offline "
        f"policy, {likelihood['oracle']:.3f} by the verifier; a coin has {np.log(0.5):.3f}."
    )


def _scorers_table(
    fits: Mapping[str, Mapping[str, float | None]], curves: Mapping[str, Mapping[str, float | None]]
) -> Table:
    table = Table(title="Scorers", title_justify="left", header_style="bold")
    table.add_column("scorer")
    counts = list(next(iter(curves.values())))
    for heading in ("likelihood", "accuracy", *(f"best of {count}" for count in counts)):
        table.add_column(heading, justify="right")
    for name in SCORERS:
        values = [fits[name]["likelihood"], fits[name]["accuracy"], *curves[name].values()]
        table.add_row(name, *(f"{value:.3f}" for value in values))
    return table


def _panels(curves: Mapping[str, Mapping[str, float | None]]) -> list[Panel]:
    """Best-of-n curves of π_SFT's samples."""
    exponents = [log2(int(count)) for count in next(iter(curves.values()))]
    series = [
        Series(name, exponents, [float(value or 0.0) for value in curve.values()]) for name, curve in curves.items()
    ]
    return [Panel("Score of the best of n samples of π_SFT", series, over="log₂ n")]


def _means(entries: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean over seeds of each value; None where a seed has none."""
    columns = {name: [entry[name] for entry in entries] for name in entries[0]}
    known = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return {name: float(np.mean(known[name])) if len(known[name]) == len(entries) else None for name in columns}
