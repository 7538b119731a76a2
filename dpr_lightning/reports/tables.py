"""Tables for the console."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from dpr_lightning.reports.content import ListTrust
from dpr_lightning.reports.results import (
    HEADINGS,
    MARKS,
    RULE,
    Paired,
    arm_name,
    measures_of,
    number,
    p_value,
    preview_rows,
)

TONES = {"better": "blue", "worse": "yellow", "": ""}


def arms_table(
    arms: Mapping[str, Mapping[str, float | None]], title: str = "Held-out prompts", highlight: str = "dpr"
) -> Table:
    """Table of the arms of an evaluation: greedy and sampled score, length, reverse KL."""
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("arm")
    measures = measures_of(arms)
    for _, heading, _, _ in measures:
        table.add_column(heading, justify="right")
    for name, arm in arms.items():
        cells = [number(arm.get(key), decimals) for key, _, decimals, _ in measures]
        table.add_row(Text(arm_name(name)), *cells, style="bold" if name == highlight else "")
    return table


def paired_table(paired: Paired, title: str = "Paired differences, 95% intervals") -> Table:
    """Table of the differences between arms on the same prompts, with the verdict on each."""
    table = Table(title=title, title_justify="left", header_style="bold", caption=RULE, caption_justify="left")
    for heading in ("comparison", "measure", "difference", "interval", "p (Holm)", ""):
        table.add_column(heading, justify="right" if heading in ("difference", "interval", "p (Holm)") else "left")
    for name, by_measure in paired.items():
        for measure, entry in by_measure.items():
            table.add_row(
                Text(" − ".join(arm_name(part) for part in name.split(" - "))),
                HEADINGS.get(measure, measure),
                number(entry["difference"], 3, signed=True),
                f"{number(entry['low'], 3, signed=True)} … {number(entry['high'], 3, signed=True)}",
                p_value(entry["p_holm"]),
                f"{MARKS[entry['verdict']]} {entry['verdict']}",
            )
    return table


def trust_table(trust: ListTrust) -> Table:
    """Table of the planted mistakes at the top of a list: a row for each length of it."""
    title = f"Planted mistakes in the list, average precision {number(trust.average_precision, 2)}"
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ("rows from the top", "planted mistakes", "precision, at least", "share of all planted"):
        table.add_column(heading, justify="right")
    for first, hits in trust.tops:
        table.add_row(f"{first:,}", f"{hits:,}", number(hits / first, 2), number(hits / trust.mistakes, 2))
    return table


def preview_table(preview: Mapping[str, Any]) -> Table:
    """Table of the preview before any RL, from ``Preview.to_dict()``: a row a reward, a column a β.

    ▲ and ▼ mark an optimum that is better or worse than SFT's samples beyond the interval, ``?`` an optimum out of the
    samples' reach, ``*`` the reward and β that look best. Without a verifier the cells have expected lengths.
    """
    betas, rows = preview_rows(preview)
    scored = preview.get("score") is not None
    baseline = f"SFT's samples score {number(preview['score']['mean'])}" if scored else "expected length, no verifier"
    table = Table(
        title=f"Optimum of each reward ({baseline}; length {number(preview['length'], 1)})",
        title_justify="left",
        header_style="bold",
        caption="▲ better  ▼ worse (each by itself, not corrected)  ? out of the samples' reach  * looks best",
        caption_justify="left",
    )
    table.add_column("reward")
    for beta in betas:
        table.add_column(f"β={beta:g}", justify="right")
    if scored:
        table.add_column(f"best of {preview['samples']}", justify="right")
        table.add_column("AUC", justify="right")
    for row in rows:
        cells = []
        for cell in row.cells:
            mark = MARKS[cell.tone] if cell.tone else " "
            value = number(cell.score) if scored else number(cell.length, 1)
            styles = (TONES[cell.tone], "bold" if cell.best else "", "" if cell.reliable else "dim")
            cells.append(
                Text(
                    f"{value}{mark}{'' if cell.reliable else '?'}{'*' if cell.best else ''}",
                    style=" ".join(filter(None, styles)),
                )
            )
        ranked = [number(row.best_of_n), number(row.auc)] if scored else []
        table.add_row(Text(row.name), *cells, *ranked)
    return table


def audit_table(audits: Sequence[Mapping[str, Any]]) -> Table:
    """Table of audits of rewards, by corrupted demonstrations and samples of π_SFT: a row a form and reference.

    The column of those that pass is left out where none does.
    """
    table = Table(
        title="corrupted rank: 0% is the lowest reward of its response", title_justify="left", header_style="bold"
    )
    headings = ("above twin", "corrupted rank", "in lowest tenth", "over samples", "verifier", "length", "at end")
    passes = ("passes",) if any(audit["passes"] for audit in audits) else ()
    for heading in ("reference", "reward", *headings, *passes):
        table.add_column(heading, justify="right" if heading in headings else "left")
    for audit in audits:
        shares = [audit[key] for key in ("twins", "place", "lowest_tenth", "samples_auc", "verifier_auc")]
        table.add_row(
            Text(str(audit["reference"]).rstrip("/").rsplit("/", 1)[-1]),
            Text(str(audit["form"])),
            *("–" if share is None else f"{share:.0%}" for share in shares),
            number(audit["length_correlation"], 2, signed=True),
            f"{audit['end_share']:.0%}",
            *("✓" if audit["passes"] else "" for _ in passes),
        )
    return table
