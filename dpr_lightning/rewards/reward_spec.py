"""The specification of the dense reward, as in YAML."""

from dataclasses import dataclass
from typing import get_args

from dpr_lightning.errors import InputError
from dpr_lightning.functional import CENTRED_FORMS, ReferenceReduction, RewardForm

FORMS: tuple[RewardForm, ...] = get_args(RewardForm)


@dataclass
class RewardSpec:
    """The form of the token reward, and its transformations, which are all off by default.

    Args:
        form: ``log_ratio`` (as published; the default), ``clipped``, ``interpolated``
            (log π_SFT − λ log π_ref), ``centred`` (r̂ − KL(π_SFT‖π_ref)(s)), ``one_sided`` (min(r̂, 0)),
            ``one_sided_centred``, ``log_policy`` (log π_SFT); or a weighted sum of them, such as
            ``{one_sided: 1.0, log_policy: 0.5}``.
        reduction: how several references become one baseline.
        coefficient: c of ``mean_minus_std``.
        clip_limit: nats at which ``clipped`` cuts.
        interpolation: λ of ``interpolated``.
        position_zscore: standardise, at each position, over the samples that are scored together, on all ranks.
        length_normalise: divide by the number of tokens of the response.
    """

    form: RewardForm | dict[RewardForm, float] = "log_ratio"
    reduction: ReferenceReduction = "mean_logprob"
    coefficient: float = 1.0
    clip_limit: float = 1.0
    interpolation: float = 0.5
    position_zscore: bool = False
    length_normalise: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown forms."""
        for name in self.terms:
            if name not in FORMS:
                raise InputError(f"There is no reward form {name!r}. Forms are: {', '.join(FORMS)}.")

    @property
    def terms(self) -> dict[RewardForm, float]:
        """The form as a weighted sum."""
        return {self.form: 1.0} if isinstance(self.form, str) else dict(self.form)

    @classmethod
    def recommended(cls) -> "RewardSpec":
        """The reward to train on: min(r̂ − KL(π_SFT‖π_ref), 0) + ½ log π_SFT. docs/results.md has the measurements.

        The fields' default is r̂, as published, which is meant for inspection, not as an objective.
        """
        return cls({"one_sided_centred": 1.0, "log_policy": 0.5})

    @property
    def needs_divergence(self) -> bool:
        """Whether the form subtracts KL(π_SFT‖π_ref)(s), which needs whole distributions."""
        return any(name in CENTRED_FORMS for name in self.terms)
