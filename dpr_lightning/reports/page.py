"""Self-contained pages: one HTML file without network requests, readable on a phone, in light and dark.

Text of models and data gets into the page through templates with autoescape alone; in addition a content security
policy allows one script, by its hash.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dpr_lightning.folders import whole_file
from dpr_lightning.reports import results
from dpr_lightning.reports.content import Report, Response
from dpr_lightning.reports.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, draw
from dpr_lightning.reports.heatmap import FLAGGED, colour_limit, heat_map
from dpr_lightning.reports.scatter import draw_scatter

TEMPLATES = Path(__file__).parent / "templates"


def write_report(path: str | Path, report: Report) -> Path:
    """Write the report of a run atomically, and return its path.

    Raises:
        InputError: a response whose lists differ in length.
    """
    limit = colour_limit(response for pair in report.pairs for response in (pair.correct, pair.wrong))
    rollout_limit = colour_limit(report.rollouts)
    betas, rewards = results.preview_rows(report.preview) if report.preview else ([], [])
    html = (
        page_environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            verdict=_lines(report.verdict),
            preview_words=_lines(report.preview_words),
            measures=results.measures_of(report.arms),
            forests=results.forests(report.paired),
            marks=results.MARKS,
            rule=results.RULE,
            betas=betas,
            rewards=rewards,
            groups={name: [draw(panel) for panel in panels] for name, panels in report.panels.items()},
            pairs=[(pair.prompt, heat_map(pair.correct, limit), heat_map(pair.wrong, limit)) for pair in report.pairs],
            scatters=[draw_scatter(scatter) for scatter in report.scatters],
            policies=results.policies_of(report.samples),
            limit=limit,
            rollouts=[heat_map(response, rollout_limit) for response in report.rollouts],
            rollout_limit=rollout_limit,
            records={name: flattened(facts) for name, facts in report.records.items()},
            settings=flattened(report.settings),
            machine=flattened(report.machine),
        )
    )
    return write_page(Path(path), html)


def write_heatmap(
    path: str | Path, rows: Iterable[Response], *, title: str = "Token rewards", note: str = "", limit: int = 500
) -> Path:
    """Write a page of responses coloured by token reward atomically, and return its path.

    Args:
        path: of the HTML file.
        rows: responses with their prompts; the page has the first ``limit``.
        title: heading of the page.
        note: a remark under the heading, such as the models of the reward.
        limit: largest number of responses on the page. A few hundred are fast on a phone.

    Raises:
        InputError: a response whose lists differ in length.
    """
    first_rows = list(islice(iter(rows), limit))
    full = colour_limit(first_rows)
    html = (
        page_environment()
        .get_template("heatmap.html.jinja")
        .render(
            title=title,
            note=note,
            total=len(rows) if isinstance(rows, Sequence) else None,
            maps=[heat_map(response, full) for response in first_rows],
            limit=full,
        )
    )
    return write_page(Path(path), html)


def flattened(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested options as rows of a table: ``optimizer.lr``, ``0.001``."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += flattened(value, f"{name}.")
        else:
            rows.append((name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)))
    return rows


def page_environment() -> jinja2.Environment:
    """Templates of this package, with style and script for all pages."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    environment.filters |= {"number": results.number, "arm": results.arm_name}
    environment.globals |= {
        # files of this package, the only text that is not escaped
        "style": Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "box": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        "flagged": FLAGGED,
    }
    return environment


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def write_page(path: Path, html: str) -> Path:
    """Write a page atomically, and return its path."""
    with whole_file(path) as stream:
        stream.write(html)
    return path
