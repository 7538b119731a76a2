"""The page of an experiment: results, preview, training curves, scatter plots of the reward, and answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpr_lightning.experiments.arm_specs import BASE, ArmSpec
from dpr_lightning.experiments.predictions import SeedPreview, foresight
from dpr_lightning.experiments.recipes import read_config
from dpr_lightning.experiments.saved_report import machine
from dpr_lightning.experiments.training_curves import (
    DPR_PANELS,
    SFT_PANELS,
    over_optimisation,
    panels,
)
from dpr_lightning.reports import Answer, Pair, Panel, Point, Report, Response, Sample, Scatter, Series, arm_name
from dpr_lightning.reports.metrics_table import read_curves

Examples = Mapping[str, Mapping[str, Any]]
# Arms in one panel; more could not be distinguished.
CURVES = 6
ARM_PANELS = (
    ("Verifier score of samples", "", "rollout/verifier"),
    ("Reverse KL to π_SFT", "nats per response", "rollout/reverse_kl"),
    ("Length", "tokens", "rollout/length"),
    ("NLL of held-out demonstrations", "nats per token", "held_out/nll"),
)
# A training writes 16 or so answers a step: a curve shows means over this share of the run.
WINDOW_SHARE = 0.05


@dataclass(frozen=True)
class FirstSeed:
    """What a page displays of the first seed alone.

    Attributes:
        folder: of the seed.
        preview: before any training.
        examples: of each arm.
    """

    folder: Path
    preview: SeedPreview
    examples: Examples


def page(
    title: str,
    seeds: Sequence[int],
    specs: Mapping[str, ArmSpec],
    means: Mapping[str, Mapping[str, float | None]],
    paired: Mapping[str, Any],
    verdict: str,
    preview: Mapping[str, Any],
    first: FirstSeed | None,
    commands: Sequence[str],
) -> Report:
    """The content of the page.

    Args:
        title: its heading.
        seeds: of the experiment.
        specs: of each arm.
        means: scores, tokens, nats and teraflops of each arm.
        paired: comparisons as plain data.
        verdict: the results in sentences.
        preview: promised and reached gains, by arm and seed.
        first: the first seed that was run here; None where all were measured elsewhere.
        commands: that repeat the experiment.
    """
    order = ranked(means)
    settings = {name: spec.to_dict() for name, spec in specs.items()}
    content = Report(
        title=title,
        verdict=verdict,
        arms=means,
        paired=paired,
        commands=commands,
        settings={"arms": settings},
        machine=machine(),
        notes=[
            f"Seeds: {', '.join(map(str, seeds))}. Scores are means over them.",
            "Intervals are 95%, paired by prompt; with several seeds, prompts and seeds both count as random.",
            "FLOPs are those of an arm's training after SFT in the first seed: counted over eight steps, times the "
            "steps. An arm that trains takes as many steps as the FLOPs of the DPR recipe pay for.",
            *(
                [
                    "An arm with `train: sft` trains from the base policy, at the cost of all its steps; with "
                    "`steps_multiple` it takes so many times the steps of SFT, whatever they cost."
                ]
                if any(spec.train == BASE for spec in specs.values())
                else []
            ),
            *(
                [
                    "An arm with `clean` trains from the base policy, without what looks wrong in the demonstrations. "
                    "Its FLOPs have the forward passes that list it, and the training of the policy that does."
                ]
                if any(spec.clean is not None for spec in specs.values())
                else []
            ),
            "Reverse KL is Σ log π − log π_SFT over a sampled response, in nats; of greedy answers it is not measured.",
            *([foresight(preview)] if preview["all"]["runs"] > 1 else []),
        ],
    )
    if first is None:
        return content
    configs = {name: read_config(first.folder / "configs" / f"{name}.yaml") for name in (BASE, "budget")}
    return replace(
        content,
        preview=first.preview.table,
        preview_words=first.preview.words,
        scatters=scatters(first.examples, specs, means, preview),
        samples=samples(first.examples, order),
        panels=curves(first.folder, specs, order),
        pairs=pairs(first.examples),
        settings={"arms": settings, "sft": configs[BASE], "dpr": configs["budget"]},
    )


def scatters(
    examples: Examples,
    specs: Mapping[str, ArmSpec],
    arms: Mapping[str, Mapping[str, float | None]],
    preview: Mapping[str, Any],
) -> list[Scatter]:
    """Scatter plots: reward against length, reward against the verifier, and promised against reached gain.

    Args:
        examples: of each arm, ``answers`` of the first seed.
        specs: of each arm. Earlier checkpoints are left out: they would stretch the axes.
        arms: means of each arm.
        preview: promised and reached gains, by arm and seed.
    """
    plots = [
        Scatter(
            f"Reward and length: answers of {arm_name(name)}",
            "length, tokens",
            "total reward, nats",
            [
                Point(answer["prompt"][:80], answer["length"], answer["reward"], answer["correct"])
                for answer in examples[name]["answers"]
            ],
            note="One answer a prompt, first seed.",
        )
        for name in _ends(specs, arms)
    ]
    compared = [name for name, spec in specs.items() if spec.policy == BASE]
    means = {name: [answer["reward"] for answer in example["answers"]] for name, example in examples.items()}
    shares = {name: [answer["correct"] for answer in example["answers"]] for name, example in examples.items()}
    plots.append(
        Scatter(
            "Reward and truth: policies",
            "mean reward, nats",
            "share answered right",
            [Point(arm_name(name), float(np.mean(means[name])), float(np.mean(shares[name]))) for name in compared],
            note="The same answers. Further right but no higher: the reward was learnt and not the task.",
        )
    )
    promised = [
        Point(f"{arm_name(name)}, run {position}", run["promised"], run["reached"])
        for name, runs in preview.get("runs", {}).items()
        for position, run in enumerate(runs, 1)
    ]
    if len(promised) > 1:  # one point shows no relation
        plots.append(
            Scatter("Preview and result", "gain promised", "gain reached", promised, "Sampled answers.", diagonal=True)
        )
    return plots


def samples(examples: Examples, order: Sequence[str]) -> list[Sample]:
    """The answers of every arm to the same prompts."""
    prompts = [answer["prompt"] for answer in examples[BASE]["answers"]]
    return [
        Sample(
            prompt,
            [_answer(name, examples[name]["answers"][index]) for name in order],
        )
        for index, prompt in enumerate(prompts)
    ]


def _answer(arm: str, answer: Mapping[str, Any]) -> Answer:
    return Answer(arm, answer["text"], answer["correct"], answer["reward"], answer["length"])


def pairs(examples: Examples) -> list[Pair]:
    """Right and wrong samples of π_SFT, token by token."""
    return [
        Pair(pair["prompt"], Response(**pair["correct"]), Response(**pair["wrong"])) for pair in examples[BASE]["pairs"]
    ]


def curves(seed_folder: Path, specs: Mapping[str, ArmSpec], order: Sequence[str]) -> dict[str, list[Panel]]:
    """Panels of training curves of one seed: of SFT, then of the arms that log rollouts, several arms in a panel."""
    groups = {"Supervised fine-tuning": panels(seed_folder / "sft" / "metrics.csv", SFT_PANELS)}
    read = {name: read_curves(seed_folder / name / "metrics.csv") for name in order if specs[name].train is not None}
    trained = [name for name in order if "rollout/reward" in read.get(name, {})]
    for start in range(0, len(trained), CURVES):
        group = trained[start : start + CURVES]
        if len(trained) == 1:
            group_panels = panels(seed_folder / group[0] / "metrics.csv", DPR_PANELS)
        else:
            group_panels = [
                Panel(
                    title, [_smooth(arm_name(name), read[name][column]) for name in group if column in read[name]], unit
                )
                for title, unit, column in ARM_PANELS
                if any(column in read[name] for name in group)
            ]
        group_panels += over_optimisation({arm_name(name): read[name] for name in group})
        groups[f"Reinforcement learning: {', '.join(map(arm_name, group))}"] = group_panels
    return {name: group_panels for name, group_panels in groups.items() if group_panels}


def ranked(arms: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """π_SFT, then the arms by their sampled score, best first."""
    other_arms = [name for name in arms if name != BASE]
    return [BASE, *sorted(other_arms, key=lambda name: -(arms[name].get("sampled") or 0.0))]


def _ends(specs: Mapping[str, ArmSpec], arms: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Names of π_SFT, and of the trained arm with the largest reverse KL."""
    drifts = {name: arms[name].get("reverse_kl") or 0.0 for name, spec in specs.items() if spec.train is not None}
    return [BASE, *sorted(drifts, key=lambda name: -drifts[name])[:1]]


def _smooth(name: str, points: Sequence[tuple[float, float]]) -> Series:
    """A curve of means over neighbouring steps."""
    width = max(1, round(WINDOW_SHARE * len(points)))
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return Series(
        name,
        [float(np.mean([step for step, _ in group])) for group in groups],
        [float(np.mean([value for _, value in group])) for group in groups],
    )
