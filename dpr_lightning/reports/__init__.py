"""Pages and tables of results from plain data: self-contained HTML, and tables for the console."""

from dpr_lightning.reports.audit_page import write_audit_page
from dpr_lightning.reports.content import (
    Answer,
    AuditedRow,
    ListTrust,
    Pair,
    Panel,
    Point,
    Report,
    Response,
    Sample,
    Scatter,
    Series,
)
from dpr_lightning.reports.page import write_heatmap, write_report
from dpr_lightning.reports.results import arm_name, number
from dpr_lightning.reports.tables import arms_table, audit_table, paired_table, preview_table, trust_table
from dpr_lightning.reports.token_responses import token_responses
from dpr_lightning.reports.verdicts import verdict_lines

__all__ = [
    "Answer",
    "AuditedRow",
    "ListTrust",
    "Pair",
    "Panel",
    "Point",
    "Report",
    "Response",
    "Sample",
    "Scatter",
    "Series",
    "arm_name",
    "arms_table",
    "audit_table",
    "number",
    "paired_table",
    "preview_table",
    "token_responses",
    "trust_table",
    "verdict_lines",
    "write_audit_page",
    "write_heatmap",
    "write_report",
]
