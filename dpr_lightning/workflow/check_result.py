"""What `dpr check` says of a run: is its reward worth training on, and in which form?"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dpr_lightning.errors import InputError
from dpr_lightning.folders import whole_file
from dpr_lightning.run_manifest import CHECK

CONTROL = "log_policy"
"""Form of the audit that needs no reference."""
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
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is no result of `dpr check`. Run it again.") from error


def combine(
    audit: Mapping[str, Any], preview: Mapping[str, Any] | None, forms: Mapping[str, dict[str, Any]], reference: str
) -> CheckResult:
    """Weigh an audit and a preview.

    Args:
        audit: content of the JSON file of `dpr audit`.
        preview: content of that of `dpr preview`; None: there was no verifier.
        forms: options of the reward by the name that the preview has for it.
        reference: share of SFT at which the preview's reference was saved.
    """
    passing = [record for record in audit["audits"] if record["passes"] and record["form"] != CONTROL]
    audited = (
        "The reward finds wrong tokens in demonstrations: it passes the audit."
        if passing
        else "No form of the reward passes the audit: none finds wrong tokens in demonstrations surely enough."
    )
    if preview is None:
        outcome: Outcome = "train" if passing else "nothing_found"
        note = "Without a verifier, whether training on it raises scores is not known; with --verifier it is estimated."
        return CheckResult(outcome, [audited, note], reference=reference)
    if preview["unranked"] is not None:
        return CheckResult("not_ranked", [preview["unranked"]])
    score = preview["score"]["mean"]
    best = preview["best"]
    point = _point(preview, best) if best is not None else None
    if best is None or point is None or point["verdict"] != "better":
        reason = "No reward and β that was tried looks better than π_SFT, as far as these samples reach."
        return CheckResult("nothing_found", [reason, audited], reference=reference)
    name, beta = best
    gain = point["score"] - score
    reason = f"The optimum of {name} at β={beta:g} is estimated at {point['score']:.3f}, {gain:+.3f} to π_SFT."
    return CheckResult("train", [reason, audited], forms.get(name), beta, reference)


def _point(preview: Mapping[str, Any], best: tuple[str, float]) -> Mapping[str, Any] | None:
    rewards = [reward for reward in preview["rewards"] if reward["name"] == best[0]]
    points = [point for reward in rewards for point in reward["points"] if point["beta"] == best[1]]
    return points[0] if points else None
