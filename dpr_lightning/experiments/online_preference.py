"""Pairs of a policy's own responses, labelled by a model that was trained on pairs from elsewhere: online DPO."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpr_lightning.experiments.arm_specs import STEPS
from dpr_lightning.experiments.online_spec import OnlinePreferenceSpec
from dpr_lightning.experiments.pair_picks import PairsSpec
from dpr_lightning.experiments.preference_pairs import pairs_flops
from dpr_lightning.experiments.recipes import Config, apply_changes
from dpr_lightning.experiments.shared_trainings import SharedTrainings

TRAIN, SOURCE = "data.init_args.train", "model.init_args.policy.source"


@dataclass(frozen=True)
class OnlineRows:
    """What the last round of an arm learns from.

    Attributes:
        pairs: the file.
        policy: folder of the policy that wrote the responses, from which the round goes on.
        steps: of the rounds before.
        flops: of the scorer's training, of the rounds before, and of all pairs.
    """

    pairs: Path
    policy: str
    steps: int
    flops: float


def online_rows(
    spec: OnlinePreferenceSpec,
    shared: SharedTrainings,
    *,
    recipe: Config,
    head: Config,
    offline: Path | None,
    verifier: str,
    steps: int,
    limit: int | None,
) -> OnlineRows:
    """Train the scorer, and go through all rounds but the training of the last one. Finished parts are not repeated.

    Args:
        spec: of the arm.
        shared: trainings and pairs of the seed.
        recipe: of the arm.
        head: config of the verifier head.
        offline: the pairs that the scorer is trained on; None for ``oracle``.
        verifier: name of the oracle.
        steps: of each round but the last.
        limit: prompts.
    """
    judge, flops = f"verifier:{verifier}", 0.0
    if spec.by != "oracle":
        config, name = (head, "a verifier head") if spec.by == "head" else (recipe, "a local reward model")
        scorer = shared.train(changed_copy(config, {TRAIN: str(offline)}, name), name)
        judge, flops = f"{spec.by}:{scorer.policy}", scorer.flops
    labelled = PairsSpec(judge, spec.pick, spec.candidates, limit=limit)
    policy = str(recipe["model"]["init_args"]["policy"]["source"])
    for number in range(spec.rounds):
        pairs = shared.pairs(labelled, policy, number)
        flops += pairs_flops(pairs)
        if number < spec.rounds - 1:
            name = f"round {number + 1}"
            config = changed_copy(recipe, {**round_options(pairs, policy, number), STEPS: steps}, name)
            trained = shared.train(config, name)
            policy, flops = trained.policy, flops + trained.flops
    return OnlineRows(pairs, policy, steps * (spec.rounds - 1), flops)


def round_options(pairs: Path, policy: str, number: int) -> Mapping[str, Any]:
    """Options of a round's training: later ones start from another policy than π_SFT, which the losses compare with."""
    start = {"model.init_args.check_start": False} if number else {}
    return {TRAIN: str(pairs), SOURCE: policy, **start}


def changed_copy(config: Config, changes: Mapping[str, Any], owner: str) -> Config:
    """A config with other values of dotted options; ``owner`` is named in the error where there is no such section."""
    copied = deepcopy(config)
    apply_changes(copied, changes, owner)
    return copied
