"""What an arm of an experiment is, as data: a recipe with changes that is trained, or a rule of decoding."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dpr_lightning.errors import InputError
from dpr_lightning.experiments.cleaned_rows import CleanSpec
from dpr_lightning.experiments.online_spec import OnlinePreferenceSpec
from dpr_lightning.experiments.pair_picks import PairsSpec
from dpr_lightning.paths import ReadPath
from dpr_lightning.rewards import RewardSpec

BASE = "sft"
"""The arm that every experiment has: π_SFT, from which all others start and with which they are compared."""
STEPS = "trainer.max_steps"
CONTINUED = "continued_sft"
"""The recipe of SFT that goes on from π_SFT at a tenth of its learning rate."""


@dataclass
class Optimum:
    """The decode-time optimum of ``reward`` at ``beta``, nats of reward per nat of KL."""

    beta: float
    reward: RewardSpec = field(default_factory=RewardSpec)


@dataclass
class BestOf:
    """The best of ``candidates`` by the total of ``reward``, picked every ``chunk`` tokens; None: once, at the end."""

    candidates: int
    chunk: int | None = None
    reward: RewardSpec = field(default_factory=RewardSpec)


@dataclass
class ArmSpec:
    """One arm; with everything left out it is π_SFT.

    Args:
        train: the recipe that trains it: ``dpr`` or ``self_play``, the experiment's own; ``sft``, the experiment's own
            from its base policy; ``continued_sft``, which goes on imitating; or the config of any algorithm, a file or
            a packaged one such as ``toy/iq_learn.yaml``, whose paths begin with the experiment's ``home``. None trains
            nothing.
        changes: dotted options of the recipe and their values, such as ``model.init_args.credit.discount: 1.0``; paths
            of the experiment begin with its ``home``.
        steps_multiple: optimizer steps as a multiple of the recipe's ``trainer.max_steps``; None: as many as the budget
            pays for. ``train: sft`` with 2 is SFT with twice the steps.
        clean: how the demonstrations are cleaned before; with ``train: sft`` and ``steps_multiple``.
        policy: without training: ``sft``, or a saved checkpoint: its name such as ``step_0000100``, or the nearest to a
            fraction of the run such as ``'0.25'``.
        pairs: the recipe learns from pairs of π_SFT's own responses to the RL prompts, as ``dpr pairs`` writes them;
            their cost is taken off the arm's budget. The judge ``dense`` is the DPR recipe's reward.
        online_preference: the recipe learns from pairs of responses of its own policy, ranked by a scorer that is
            trained on ``pairs``; all that this costs is taken off the arm's budget.
        temperature: of the samples.
        references: checkpoints that ``optimum``, ``best_of``, ``extrapolate`` and the reward of a recipe take; None:
            the recipe's.
        optimum: answers are sampled from π·exp(r/β), where DPR with this reward is heading at γ = 0.
        best_of: answers are selected by a reward. Such an arm has no greedy answer.
        extrapolate: w of θ + w·(θ − θ_ref).
        extra_flops: floating-point operations that the arm takes outside its training, such as those of a model that
            labels its pairs. They are taken off its budget, and reported with its training.
    """

    train: ReadPath | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    steps_multiple: float | None = None
    clean: CleanSpec | None = None
    pairs: PairsSpec | None = None
    online_preference: OnlinePreferenceSpec | None = None
    policy: str = BASE
    temperature: float = 1.0
    references: list[str] | None = None
    optimum: Optimum | None = None
    best_of: BestOf | None = None
    extrapolate: float | None = None
    extra_flops: float = 0.0

    def __post_init__(self) -> None:
        """Refuse options that would be ignored."""
        if self.changes and self.train is None:
            raise InputError("`changes` are to the config of a training: they take `train`.")
        if self.steps_multiple is not None:
            if self.train is None or STEPS in self.changes:
                raise InputError(
                    "`steps_multiple` multiplies the steps of the recipe that `train` names: it takes `train`, and "
                    f"`changes` without {STEPS!r}."
                )
            if not 0 < self.steps_multiple < math.inf:
                raise InputError(f"`steps_multiple` is {self.steps_multiple:g}: it is a number above 0, such as 2.")
        if self.clean is not None and (self.train != BASE or self.steps_multiple is None):
            raise InputError(
                "`clean` is of demonstrations that a policy is trained on anew: it takes `train: sft` and "
                "`steps_multiple`, such as 1."
            )
        if self.pairs is not None and self.train is None:
            raise InputError("`pairs` are what a recipe learns from: they take `train`, such as toy/dpo.yaml.")
        if (online := self.online_preference) is not None:
            if self.train is None:
                raise InputError(
                    "`online_preference` is what a recipe learns from: it takes `train`, such as toy/dpo.yaml."
                )
            if (self.pairs is None) != (online.by == "oracle"):
                rule = "ranks by the verifier: leave `pairs` out" if self.pairs else "is trained on `pairs`: add them"
                raise InputError(f"The scorer of `online_preference` with `by: {online.by}` {rule}.")
        if self.train is not None and self.policy != BASE:
            raise InputError("Training starts from π_SFT: leave `policy` out where there is `train`.")
        if self.optimum is not None and self.best_of is not None:
            raise InputError("An arm draws from an `optimum` or picks the `best_of` several, not both.")
        rules = (self.optimum, self.best_of, self.extrapolate)
        takes_references = self.train is not None or any(rule is not None for rule in rules)
        if self.references is not None and not (self.references and takes_references):
            raise InputError(
                f"`references` is {self.references}: it names checkpoints, and only for `train`, `optimum`, `best_of` "
                "and `extrapolate`. Leave it out to take those of the DPR config."
            )
        if self.extrapolate is not None and self.references is not None and len(self.references) > 1:
            raise InputError("Weights are extrapolated away from one reference.")
        if not self.extra_flops >= 0:
            raise InputError(f"`extra_flops` is {self.extra_flops}: it is a number of operations, 0 or more.")

    @property
    def is_longer_sft(self) -> bool:
        """Whether it is π_SFT with more steps, and nothing else changed."""
        plain = self.train == BASE and not self.changes and self.clean is None
        return plain and (self.steps_multiple or 0.0) > 1.0

    @property
    def depends_on(self) -> list[str]:
        """The arms by which its demonstrations are cleaned."""
        return [] if self.clean is None else self.clean.arms

    def to_dict(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain data."""
        defaults = asdict(ArmSpec())
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


def check_dependencies(arms: Mapping[str, ArmSpec], focus: str | None) -> None:
    """Refuse arms that start from arms which do not exist, leave nothing for them, or start from them.

    Args:
        arms: all of an experiment.
        focus: the arm that trains while the others do, on which none can depend.

    Raises:
        InputError: there is such an arm.
    """
    for name, arm in arms.items():
        for other in arm.depends_on:
            option = "policy" if arm.clean is not None and arm.clean.by == "refused" else "rows"
            if other not in arms or other == focus:
                reason = "is the `focus`, which trains at the same time" if other == focus else "is no arm"
                raise InputError(f"Arm {name!r} has `clean.{option}: {other}`, and {other!r} {reason}.")
            if arms[other].train != BASE or (option == "rows" and arms[other].clean is None):
                needed = "`train: sft`" if option == "policy" else "`clean`"
                raise InputError(f"Arm {name!r} has `clean.{option}: {other}`, and arm {other!r} has no {needed}.")
    for name in arms:
        path, ahead = [name], list(arms[name].depends_on)
        while ahead:
            path.append(ahead.pop())
            if path[-1] == name:
                raise InputError(f"Arm {name!r} is cleaned by what depends on itself: {' ← '.join(path)}.")
            ahead += arms[path[-1]].depends_on if len(path) <= len(arms) else []


def standard_arms(*, contrast_strength: float, low_temperature: float) -> dict[str, ArmSpec]:
    """Dense-Path REINFORCE and its controls, arms of quickstart and smollm2.

    Args:
        contrast_strength: w of the decode-time contrast π·(π/π_ref)^w.
        low_temperature: of the arm that samples π_SFT at a lower temperature.
    """
    return {
        "reference": ArmSpec(policy="0.25"),
        CONTINUED: ArmSpec(train=CONTINUED),
        "sft_low_temperature": ArmSpec(temperature=low_temperature),
        "contrast": ArmSpec(optimum=Optimum(1.0 / contrast_strength)),
        "dpr": ArmSpec(train="dpr"),
    }


def cleaning_arms(home: str) -> dict[str, ArmSpec]:
    """SFT anew on noisy demonstrations without what looks wrong, with controls that leave out as much, and a ceiling.

    Args:
        home: folder that the recipe's paths begin with, where ``data/oracle_masked.jsonl`` has the mistakes marked.
    """

    def anew(clean: CleanSpec | None = None, changes: dict[str, Any] | None = None) -> ArmSpec:
        return ArmSpec(train=BASE, steps_multiple=1.0, clean=clean, changes=changes or {})

    return {
        "trimmed": anew(changes={"model.init_args.trim": {"after": 0.125}}),
        "cleaned": anew(CleanSpec(policy="trimmed")),
        "cleaned_random": anew(CleanSpec("random", rows="cleaned")),
        "cleaned_small_loss": anew(CleanSpec("small_loss", rows="cleaned")),
        "cleaned_oracle": anew(changes={"data.init_args.train": f"{home}/data/oracle_masked.jsonl"}),
    }
