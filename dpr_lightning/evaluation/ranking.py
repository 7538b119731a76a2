"""Does a number separate right from wrong? The area under the ROC curve, pooled and within groups."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


def auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Area under the ROC curve:  P(positive > negative) + ½·P(positive = negative), over all pairs.

    Args:
        positive: scores that should be higher; infinite ones are allowed.
        negative: scores that should be lower.

    Returns:
        In [0, 1], .5 for chance; NaN when either side is empty.

    Raises:
        ValueError: a score is NaN.
    Source: Mann & Whitney 1947; Hanley & McNeil 1982.
    """
    above, below = _ranked("positive", positive), _ranked("negative", negative)
    pairs = len(above) * len(below)
    return _pairs_won(above, below) / pairs if pairs else float("nan")


def auc_within_groups(score: ArrayLike, correct: ArrayLike, group: ArrayLike) -> float:
    """AUC over the pairs (right, wrong) within each prompt, pooled:  Σ_g pairs won in g / Σ_g pairs of g.

    It measures whether a reward ranks right above wrong among responses to the same prompt. Prompts whose responses
    are all right or all wrong have no pairs and do not count.

    Args:
        score: [N].
        correct: [N], true or false.
        group: [N], the prompt of each response.

    Returns:
        In [0, 1]; NaN when no prompt has both.

    Raises:
        ValueError: lengths that differ, or a NaN score.
    """
    scores, right, groups = _ranked("score", score), np.asarray(correct).astype(bool), np.asarray(group)
    if not scores.shape == right.shape == groups.shape:
        raise ValueError(f"score, correct and group have shapes {scores.shape}, {right.shape} and {groups.shape}.")
    order = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(groups[order][1:] != groups[order][:-1]) + 1
    won, pairs = 0.0, 0
    for member in np.split(order, cuts):
        above, below = scores[member][right[member]], scores[member][~right[member]]
        won += _pairs_won(above, below)
        pairs += len(above) * len(below)
    return won / pairs if pairs else float("nan")


def _ranked(name: str, scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    if np.isnan(values).any():
        raise ValueError(f"{name}[{int(np.flatnonzero(np.isnan(values))[0])}] is NaN, which has no rank.")
    return values


def _pairs_won(above: NDArray[np.float64], below: NDArray[np.float64]) -> float:
    if not len(above) or not len(below):
        return 0.0
    ranks = stats.rankdata(np.concatenate([above, below]))
    return float(ranks[: len(above)].sum()) - len(above) * (len(above) + 1) / 2
