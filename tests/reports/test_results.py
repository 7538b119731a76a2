import io
import math

from rich.console import Console

from dpr_lightning.reports import arms_table, paired_table, preview_table
from dpr_lightning.reports.results import arm_name, forests, number, preview_rows, verdict_of
from tests.reports.example import example_report


def _printed(table) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_numbers_for_tables():
    assert number(None) == "–"
    assert number(math.nan) == "–"
    assert number(-math.inf) == "−∞"
    assert number(-0.12345, 3, signed=True) == "−0.123"
    assert number(0.5, 2, signed=True) == "+0.50"
    assert number(-0.0001, 3, signed=True) == "0.000"


def test_intervals_in_words():
    assert verdict_of(0.01, 0.2)[0] == "higher"
    assert verdict_of(-0.2, -0.01)[0] == "lower"
    assert verdict_of(-0.1, 0.2)[0] == "no detectable difference"
    assert verdict_of(0.0, 0.2)[0] == "no detectable difference"


def test_forest_places_bars_on_a_shared_axis():
    plots = {plot.measure: plot for plot in forests(example_report(1).paired)}
    assert list(plots) == ["sampled", "greedy"]
    assert plots["sampled"].marks == plots["greedy"].marks
    for plot in plots.values():
        for bar in plot.bars:
            assert bar.start <= bar.place <= bar.start + bar.width + 0.01
            assert (bar.place > plot.zero) == (bar.difference > 0)
    assert plots["sampled"].bars[0].name == "DPR − SFT"


def test_names_of_arms():
    assert arm_name("sft_low_temperature") == "SFT low temperature"
    assert arm_name("dpr") == "DPR"


def test_preview_puts_controls_last_and_marks_the_best():
    report = example_report(1)
    betas, rows = preview_rows(report.preview)
    assert betas == [4.0, 2.0, 1.0, 0.5, 0.25, 0.1]
    assert [row.control for row in rows] == [False] * 6 + [True]
    best = [(row.name, beta) for row in rows for beta, cell in zip(betas, row.cells, strict=True) if cell.best]
    assert best == [tuple(report.preview["best"]), tuple(report.preview["best_control"])]


def test_console_tables_hold_the_numbers():
    report = example_report(1)
    arms = _printed(arms_table(report.arms))
    assert "SFT low temperature" in arms
    assert "18.210" in arms
    assert "▲ higher" in _printed(paired_table(report.paired))
    shown = _printed(preview_table(report.preview))
    assert "log_ratio" in shown
    assert "▼" in shown
    assert "score 0.4" in shown


def test_console_does_not_read_names_as_markup():
    assert "[red]x" in _printed(arms_table({"[red]x": {"greedy": 0.5}}))


def test_preview_without_a_verifier_shows_lengths():
    point = {
        "beta": 1.0, "score": None, "length": 41.5, "effective_samples": 5.0,
        "effective_share": 0.5, "difference": None, "reliable": True, "verdict": None,
    }  # fmt: skip
    reward = {"name": "r", "control": False, "auc": None, "best_of_n": None, "points": [point]}
    plain = {"prompts": 2, "samples": 10, "score": None, "length": 40.0, "rewards": [reward], "best": None}
    assert "41.5" in _printed(preview_table(plain))
