"""The table of an audit in a terminal."""

from typing import Any

import pytest

from dpr_lightning.reports import audit_table

AUDIT: dict[str, Any] = {
    "reference": "policies/step_0000010",
    "form": "one_sided",
    "twins": 0.75,
    "place": 0.25,
    "lowest_tenth": 0.1,
    "samples_auc": 0.6,
    "verifier_auc": None,
    "length_correlation": -0.1,
    "end_share": 0.02,
}


@pytest.mark.parametrize(("passed", "cells"), [([False, True], ["", "✓"]), ([False, False], None)])
def test_a_column_says_what_passes_where_something_does(passed: list[bool], cells: list[str] | None) -> None:
    table = audit_table([AUDIT | {"passes": each} for each in passed])
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns.get("passes") == cells
