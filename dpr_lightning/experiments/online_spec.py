"""From which responses of its policy an arm of online preferences learns, as data."""

from dataclasses import dataclass
from typing import Literal, get_args

from dpr_lightning.errors import InputError
from dpr_lightning.experiments.pair_picks import Pick
from dpr_lightning.paths import ReadPath

By = Literal["head", "policy", "oracle"]
HEAD_RECIPE = "toy/reward_model.yaml"


@dataclass
class OnlinePreferenceSpec:
    """The rows of an arm: responses of the policy in training, ranked by a scorer; loss and settings are the recipe's.

    Args:
        by: what ranks them. ``head``: a verifier head trained on the arm's ``pairs``, a global reward model;
            ``policy``: a policy trained on these by the arm's own recipe, a local one; ``oracle``: the verifier of the
            comparison, a ceiling.
        candidates: responses a prompt.
        pick: which two of them are a pair, as for ``pairs``.
        rounds: parts of the training. Each begins with responses of the policy that the one before has trained.
        limit: prompts; None: as many as the arm's ``pairs``.
        head: of ``by: head``: the config of the head, a file or a packaged one, whose ``data.init_args.train`` is
            replaced by the arm's pairs.

    Source: Swamy et al. 2025 (paper), arXiv:2503.01067: the same loss and settings on pairs of other origin. That each
    round starts from the policy of the one before, with π_SFT as reference: ours.
    """

    by: By = "head"
    candidates: int = 16
    pick: Pick = "best_worst"
    rounds: int = 1
    limit: int | None = None
    head: ReadPath = HEAD_RECIPE

    def __post_init__(self) -> None:
        """Check the ranges, and refuse what would be ignored."""
        if self.by not in get_args(By):
            raise InputError(f"`online_preference.by` is {self.by!r}: choose {', '.join(get_args(By))}.")
        if self.candidates < 2:
            raise InputError(
                f"`online_preference.candidates` is {self.candidates}: a pair is of two responses at least."
            )
        if self.rounds < 1:
            raise InputError(f"`online_preference.rounds` is {self.rounds}: there is 1 at least.")
        if self.head != HEAD_RECIPE and self.by != "head":
            raise InputError(
                f"`online_preference.head` is the config of `by: head`, and `by` is {self.by}: leave it out."
            )
