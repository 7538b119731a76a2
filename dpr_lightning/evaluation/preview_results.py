"""Results of a preview: the optimum of each reward at each β, compared with samples of π_SFT."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.statistics import MeanInterval, PairedComparison, Verdict, verdict

# Below this many samples per prompt the weighted mean depends on one or two responses.
LEAST_EFFECTIVE_SAMPLES = 4.0


@dataclass(frozen=True)
class PreviewPoint:
    """The optimum of one reward at one β, as far as the samples reach.

    ``score`` and ``length`` (tokens) are expectations under π*; ``effective_samples`` is the mean of 1/Σw² over
    prompts, ``effective_share`` the same over n. ``difference`` is score − mean score of π_SFT's samples, by prompt.
    Without a verifier ``score`` and ``difference`` are None.
    """

    beta: float
    score: float | None
    length: float
    effective_samples: float
    effective_share: float
    difference: PairedComparison | None

    @property
    def reliable(self) -> bool:
        """Whether enough samples carry the weight for an estimate of the optimum itself."""
        return self.effective_samples >= LEAST_EFFECTIVE_SAMPLES

    @property
    def verdict(self) -> Verdict | None:
        """The optimum against π_SFT's samples; None without a verifier."""
        return None if self.difference is None else verdict(self.difference)


@dataclass(frozen=True)
class RewardPreview:
    """One reward: how it ranks responses, and the optimum at each β.

    ``auc``: chance that it ranks a right response above a wrong one to the same prompt; ``best_of_n``: score of the
    response with the highest reward (None without a verifier); ``control``: a reward without reference, as a baseline.
    """

    name: str
    control: bool
    auc: float | None
    best_of_n: float | None
    best_of_n_length: float
    points: tuple[PreviewPoint, ...]

    def at(self, beta: float) -> PreviewPoint:
        """The point at a β of the preview.

        Raises:
            InputError: the preview does not include this β.
        """
        for point in self.points:
            if math.isclose(point.beta, beta, rel_tol=1e-9):
                return point
        raise InputError(f"The preview has no β={beta:g}; it has β={numbers(p.beta for p in self.points)}.")


@dataclass(frozen=True)
class Preview:
    """All rewards and β, compared with samples of π_SFT.

    ``prompts`` N, ``samples`` n per prompt; ``score`` (None without a verifier) and ``length`` of the unweighted
    samples; ``varies``: whether the samples of some prompt differ in score, without which nothing can be ranked (None
    without a verifier); ``cut``: share of the samples that the length limit ended (None where it is not known);
    ``best`` and ``best_control``: (name, β) whose gain is surest; ``best_against_control``: the score of the one minus
    that of the other, paired by prompt.
    """

    prompts: int
    samples: int
    score: MeanInterval | None
    length: float
    varies: bool | None
    cut: float | None
    rewards: tuple[RewardPreview, ...]
    best: tuple[str, float] | None
    best_control: tuple[str, float] | None
    best_against_control: PairedComparison | None

    def reward(self, name: str) -> RewardPreview:
        """The preview of one reward.

        Raises:
            InputError: there is none of this name.
        """
        for reward in self.rewards:
            if reward.name == name:
                return reward
        raise InputError(f"The preview has no reward {name!r}; it has {', '.join(r.name for r in self.rewards)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and for the report; what is not defined (an AUC of no pairs) is None."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        for entry, reward in zip(plain["rewards"], self.rewards, strict=True):
            for point, source in zip(entry["points"], reward.points, strict=True):
                point |= {"reliable": source.reliable, "verdict": source.verdict}
        return plain


def _plain(value: Any) -> Any:
    """Replace tuples by lists and NaN by None: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numbers(values: Iterable[float]) -> str:
    """Numbers for a sentence: 4, 2, 0.5."""
    return ", ".join(f"{value:g}" for value in values) or "none"
