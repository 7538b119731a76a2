"""The page of an audit: demonstrations to look at, and a file of those that a reader marked as wrong."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpr_lightning.reports.content import AuditedRow, ListTrust
from dpr_lightning.reports.curves import draw
from dpr_lightning.reports.heatmap import HeatMap, colour_limit, heat_map, visible
from dpr_lightning.reports.page import page_environment, write_page


@dataclass(frozen=True)
class Entry:
    """A row for its template.

    ``exported`` is its line in the file of marked rows; ``token_rank`` and ``total_rank`` are 0 for the most suspicious
    row.
    """

    name: str
    exported: dict[str, Any]
    map: HeatMap
    token: int
    token_text: str
    token_reward: float
    direction: str
    token_rank: int
    total_rank: int


def write_audit_page(
    path: str | Path,
    rows: Sequence[AuditedRow],
    *,
    reward: str,
    total: int,
    learnt: str | None = None,
    trust: ListTrust | None = None,
) -> Path:
    """Write the page of suspicious demonstrations atomically, and return its path.

    Args:
        path: of the HTML file.
        rows: the most suspicious first.
        reward: form and reference of the reward, for the heading.
        total: demonstrations that were scored.
        learnt: of demonstrations that were trained on, which come first, in a sentence or two: rewards are the negative
            suspicion of tokens, and the page has the rows in this order; None: they were not trained on.
        trust: how far the list of rows that were trained on can be trusted.

    Raises:
        InputError: a response whose lists differ in length.
    """
    limit = colour_limit(row.response for row in rows)
    by_token = _ranks([row.response.reward[row.token] for row in rows])
    by_total = [*range(len(rows))] if learnt is not None else _ranks([sum(row.response.reward) for row in rows])
    ranked = zip(rows, by_token, by_total, strict=True)
    entries = [_entry(row, limit, learnt is not None, *ranks) for row, *ranks in ranked]
    template = page_environment().get_template("audit.html.jinja")
    curve = None if trust is None else draw(trust.panel)
    html = template.render(
        entries=entries, reward=reward, total=total, learnt=learnt, limit=limit, trust=trust, curve=curve
    )
    return write_page(Path(path), html)


def _entry(row: AuditedRow, limit: float, learnt: bool, token_rank: int, total_rank: int) -> Entry:
    response, token = row.response, row.token
    return Entry(
        name=f"{row.file}:{row.row}",
        exported=row.exported,
        map=heat_map(response, limit),
        token=token,
        token_text=visible(response.tokens[token]),
        token_reward=response.reward[token],
        direction=_direction(response.policy_logprob[token], response.reference_logprob[token], learnt),
        token_rank=token_rank,
        total_rank=total_rank,
    )


def _direction(policy_logprob: float, reference_logprob: float, learnt: bool) -> str:
    """Which model finds a token more probable; of a row that was trained on, the probability at the end of the run."""
    policy, reference = _probability(policy_logprob), _probability(reference_logprob)
    if learnt:
        return f"the probability of this token at the end of the run is {policy}"
    word = "less" if policy_logprob < reference_logprob else "more"
    return f"π_SFT finds this token {word} probable ({policy}) than the reference did ({reference})"


def _probability(logprob: float) -> str:
    value = math.exp(logprob)
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _ranks(values: Sequence[float]) -> list[int]:
    """The rank of each value: 0 for the lowest; of equal ones the earlier is lower."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    ranks = [0] * len(values)
    for rank, index in enumerate(order):
        ranks[index] = rank
    return ranks
