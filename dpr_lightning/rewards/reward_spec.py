"""The specification of the dense reward, as in YAML."""

import importlib
from dataclasses import dataclass

from dpr_lightning.errors import InputError, first_line
from dpr_lightning.functional import FORMS, ReferenceReduction
from dpr_lightning.functional.reward_forms import form_names, form_needs_divergence


@dataclass
class RewardSpec:
    """The form of the token reward, and its transformations, which are all off by default.

    Args:
        form: ``log_ratio`` (as published; the default), ``clipped``, ``interpolated``
            (log π_SFT − λ log π_ref), ``centred`` (r̂ − KL(π_SFT‖π_ref)(s)), ``one_sided`` (min(r̂, 0)),
            ``one_sided_centred``, ``log_policy`` (log π_SFT); the import path of a form of your own, such as
            ``my_rewards.surprise``; or a weighted sum of them, such as ``{one_sided: 1.0, log_policy: 0.5}``.
        reduction: how several references become one baseline.
        coefficient: c of ``mean_minus_std``.
        clip_limit: nats at which ``clipped`` cuts.
        interpolation: λ of ``interpolated``.
        position_zscore: standardise, at each position, over the samples that are scored together, on all ranks.
        length_normalise: divide by the number of tokens of the response.
    """

    form: str | dict[str, float] = "log_ratio"
    reduction: ReferenceReduction = "mean_logprob"
    coefficient: float = 1.0
    clip_limit: float = 1.0
    interpolation: float = 0.5
    position_zscore: bool = False
    length_normalise: bool = False

    def __post_init__(self) -> None:
        """Import forms of other packages; refuse unknown ones."""
        for name in self.terms:
            _import_form(name)

    @property
    def terms(self) -> dict[str, float]:
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
        return any(map(form_needs_divergence, self.terms))


def _import_form(name: str) -> None:
    """Import the module of a form that is named by its import path, which registers it."""
    module = name.rpartition(".")[0]
    if name in form_names():
        return
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(
                f"The reward form {name!r} is an import path, and its module is not found: {first_line(error)}. Run "
                "`dpr` in its folder with PYTHONPATH=., or install its package."
            ) from error
    if name not in form_names():
        remedy = f"In {module}, register it with @reward_form() of dpr_lightning.rewards. " if module else ""
        raise InputError(f"There is no reward form {name!r}. {remedy}Forms of this package are: {', '.join(FORMS)}.")
