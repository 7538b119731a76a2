"""Arms, evaluation and recipes of a comparison, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dpr_lightning.errors import InputError
from dpr_lightning.rewards import RewardSpec
from dpr_lightning.rollouts import SamplingOptions


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
        train: ``dpr`` trains Dense-Path REINFORCE, ``continued_sft`` goes on imitating, ``self_play`` is SPIN or GSIL;
            None trains nothing.
        changes: dotted options of the config of that training and their values, such as
            ``model.init_args.credit.discount: 1.0``.
        policy: without training: ``sft``, or a saved checkpoint: its name such as ``step_0000100``, or the nearest to a
            fraction of the run such as ``'0.25'``.
        temperature: of the samples.
        references: checkpoints that ``optimum``, ``best_of``, ``extrapolate`` and the reward of ``dpr`` take; None: the
            config's.
        optimum: answers are sampled from π·exp(r/β), where DPR with this reward is heading at γ = 0.
        best_of: answers are selected by a reward. Such an arm has no greedy answer.
        extrapolate: w of θ + w·(θ − θ_ref).
    """

    train: Literal["dpr", "continued_sft", "self_play"] | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    policy: str = "sft"
    temperature: float = 1.0
    references: list[str] | None = None
    optimum: Optimum | None = None
    best_of: BestOf | None = None
    extrapolate: float | None = None

    def __post_init__(self) -> None:
        """Refuse options that would be ignored."""
        if self.changes and self.train is None:
            raise InputError("`changes` are to the config of a training: they take `train`.")
        if self.train is not None and self.policy != "sft":
            raise InputError("Training starts from π_SFT: leave `policy` out where there is `train`.")
        if self.optimum is not None and self.best_of is not None:
            raise InputError("An arm draws from an `optimum` or picks the `best_of` several, not both.")
        rules = (self.optimum, self.best_of, self.extrapolate)
        takes_references = self.train == "dpr" or any(rule is not None for rule in rules)
        if self.references is not None and not (self.references and takes_references):
            raise InputError(
                f"`references` is {self.references}: it names checkpoints, and only for `train: dpr`, `optimum`, "
                "`best_of` and `extrapolate`. Leave it out to take those of the DPR config."
            )
        if self.extrapolate is not None and self.references is not None and len(self.references) > 1:
            raise InputError("Weights are extrapolated away from one reference.")


def reward_of(config: Mapping[str, Any]) -> RewardSpec:
    """The reward that a DPR config learns from."""
    form = config["data"]["init_args"].get("reward")
    return RewardSpec(**form) if form is not None else RewardSpec.recommended()


@dataclass(frozen=True)
class Evaluation:
    """How every arm is evaluated: ``samples`` a prompt and a greedy answer, which end where ``options`` say."""

    options: SamplingOptions
    samples: int
    seed: int


@dataclass(frozen=True)
class Recipes:
    """The configs that arms change: packaged names, or files.

    The paths in them begin with ``home``; steps that are None are the configs' own numbers. The preview has
    ``preview_samples`` of π_SFT for each of ``preview_prompts``; with 0 there is no preview.
    """

    sft: str
    dpr: str
    self_play: str
    home: str
    sft_steps: int | None = None
    dpr_steps: int | None = None
    preview_samples: int = 16
    preview_prompts: int = 100
