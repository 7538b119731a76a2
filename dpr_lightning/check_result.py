"""What `dpr check` found of a run: is its reward worth training on, and in which form?"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dpr_lightning.errors import InputError
from dpr_lightning.folders import whole_file
from dpr_lightning.run_manifest import CHECK, RunManifest

Outcome = Literal["train", "nothing_found", "not_ranked"]


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        outcome: ``train``: reinforcement learning may pay; ``nothing_found``: no form of the reward looks better than
            π_SFT, or none finds a wrong token; ``not_ranked``: no answer, or every one, was right, so that nothing can
            be compared.
        reasons: a sentence each.
        reward: options of a :class:`~dpr_lightning.rewards.RewardSpec`; None: the recommended one.
        beta: nats of reward per nat of KL; None: that of the recipe.
        reference: share of SFT at which the reference was saved, such as ``0.25``.
    """

    outcome: Outcome
    reasons: list[str] = field(default_factory=list)
    reward: dict[str, Any] | None = None
    beta: float | None = None
    reference: str | None = None

    def save(self, run: Path) -> None:
        """Write it into the folder of a run."""
        with whole_file(run / CHECK) as stream:
            json.dump(asdict(self), stream, indent=2, ensure_ascii=False)
            stream.write("\n")

    @classmethod
    def load(cls, run: Path) -> "CheckResult | None":
        """That of a run; None: it was not checked.

        Raises:
            InputError: the file is damaged.
        """
        path = run / CHECK
        if not path.is_file():
            return None
        try:
            result = cls(**json.loads(path.read_text(encoding="utf-8")))
            if result.outcome not in get_args(Outcome) or not isinstance(result.reward, dict | None):
                raise TypeError
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is no result of `dpr check`. Run it again.") from error
        return result

    def reference_in(self, manifest: RunManifest) -> str:
        """The folder of the reference that was checked.

        Raises:
            InputError: the run no longer has it.
        """
        return manifest.reference if self.reference is None else manifest.reference_at(self.reference)
