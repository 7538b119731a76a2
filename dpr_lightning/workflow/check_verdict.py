"""What `dpr check` concludes from an audit and a preview."""

from collections.abc import Mapping
from typing import Any

from dpr_lightning.check_result import CheckResult, Outcome

CONTROL = "log_policy"
"""Form of the audit that needs no reference."""


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
