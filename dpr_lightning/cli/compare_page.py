"""The page of a comparison: what was found first, then what the reward has to do with it, samples and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpr_lightning.cli.compare_findings import BASE
from dpr_lightning.cli.compare_specs import ArmSpec
from dpr_lightning.cli.training_curves import SFT_PANELS, over_optimisation, panels, read_curves
from dpr_lightning.reports import Answer, Pair, Panel, Point, Response, Sample, Scatter, Series, arm_name

Examples = Mapping[str, Mapping[str, Any]]
# Arms in one panel; more could not be told apart.
CURVES = 6
ARM_PANELS = (
    ("Verifier score of samples", "", "rollout/verifier"),
    ("Reverse KL to π_SFT", "nats per response", "rollout/reverse_kl"),
    ("Length", "tokens", "rollout/length"),
    ("Likelihood of held-out demonstrations", "nats per token", "held_out/nll"),
)
# A training writes 16 or so answers a step: a curve shows means over this share of the run.
WINDOW_SHARE = 0.05


def scatters(
    examples: Examples,
    specs: Mapping[str, ArmSpec],
    arms: Mapping[str, Mapping[str, float | None]],
    preview: Mapping[str, Any],
) -> list[Scatter]:
    """Reward against length and against the verifier, and the preview's promise against what was reached.

    Args:
        examples: of each arm, ``answers`` of the first seed.
        specs: of each arm. Earlier checkpoints are left out: they lie further off than the others are apart.
        arms: means of each arm.
        preview: what was promised and reached, by arm and seed.
    """
    drawn = [
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
    shown = [name for name, spec in specs.items() if spec.policy == BASE]
    means = {name: [answer["reward"] for answer in held["answers"]] for name, held in examples.items()}
    shares = {name: [answer["correct"] for answer in held["answers"]] for name, held in examples.items()}
    drawn.append(
        Scatter(
            "Reward and truth: policies",
            "mean reward, nats",
            "share answered right",
            [Point(arm_name(name), float(np.mean(means[name])), float(np.mean(shares[name]))) for name in shown],
            note="The same answers. Further right but no higher: the reward was learnt and not the task.",
        )
    )
    promised = [
        Point(f"{arm_name(name)}, run {place}", run["promised"], run["reached"])
        for name, runs in preview.get("runs", {}).items()
        for place, run in enumerate(runs, 1)
    ]
    if promised:
        drawn.append(
            Scatter("Preview and result", "gain promised", "gain reached", promised, "Sampled answers.", diagonal=True)
        )
    return drawn


def samples(examples: Examples, order: Sequence[str]) -> list[Sample]:
    """What every arm answered to the same prompts."""
    asked = [answer["prompt"] for answer in examples[BASE]["answers"]]
    return [
        Sample(
            prompt,
            [
                Answer(name, held["text"], held["correct"], held["reward"], held["length"])
                for name in order
                for held in [examples[name]["answers"][place]]
            ],
        )
        for place, prompt in enumerate(asked)
    ]


def pairs(examples: Examples) -> list[Pair]:
    """Right and wrong samples of π_SFT, token by token."""
    return [
        Pair(pair["prompt"], Response(**pair["correct"]), Response(**pair["wrong"])) for pair in examples[BASE]["pairs"]
    ]


def curves(seed_folder: Path, specs: Mapping[str, ArmSpec], order: Sequence[str]) -> dict[str, list[Panel]]:
    """Training curves of one seed: SFT's, then of the arms that write rollouts, several in a panel."""
    groups = {"Supervised fine-tuning": panels(seed_folder / "sft" / "metrics.csv", SFT_PANELS)}
    read = {
        name: read_curves(seed_folder / "arms" / name / "metrics.csv")
        for name in order
        if specs[name].train is not None
    }
    trained = [name for name in order if "rollout/reward" in read.get(name, {})]
    for start in range(0, len(trained), CURVES):
        chosen = trained[start : start + CURVES]
        found = [
            Panel(title, [_smooth(arm_name(name), read[name][column]) for name in chosen if column in read[name]], unit)
            for title, unit, column in ARM_PANELS
            if any(column in read[name] for name in chosen)
        ]
        found += over_optimisation({arm_name(name): read[name] for name in chosen})
        groups[f"Dense-Path REINFORCE: {', '.join(map(arm_name, chosen))}"] = found
    return {name: found for name, found in groups.items() if found}


def ranked(arms: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """π_SFT, then the arms by their sampled score, best first."""
    others = [name for name in arms if name != BASE]
    return [BASE, *sorted(others, key=lambda name: -(arms[name].get("sampled") or 0.0))]


def _ends(specs: Mapping[str, ArmSpec], arms: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """π_SFT, and the arm that training took furthest from it."""
    drifts = {name: arms[name].get("reverse_kl") or 0.0 for name, spec in specs.items() if spec.train is not None}
    return [BASE, *sorted(drifts, key=lambda name: -drifts[name])[:1]]


def _smooth(name: str, points: Sequence[tuple[float, float]]) -> Series:
    """Means over neighbouring steps."""
    width = max(1, round(WINDOW_SHARE * len(points)))
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return Series(
        name,
        [float(np.mean([step for step, _ in group])) for group in groups],
        [float(np.mean([value for _, value in group])) for group in groups],
    )
