import io
import math

from rich.console import Console

from dpr_lightning.reports import arms_table, paired_table, preview_table, verdict_lines
from dpr_lightning.reports.results import arm_name, forests, number, p_value, preview_rows
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


def test_p_values_for_tables():
    assert p_value(0.00099) == "< .001"
    assert p_value(0.0514) == ".051"
    assert p_value(1.0) == "1.000"


def test_a_verdict_is_the_record_s_and_not_the_interval_s():
    """In the example the interval of "dpr - contrast", greedy, leaves out 0, and Holm's p-value is .051."""
    paired = example_report(1).paired
    entry = paired["dpr - contrast"]["greedy"]
    assert entry["low"] > 0
    assert entry["verdict"] == "no detectable difference"
    bars = {(plot.measure, bar.name): bar for plot in forests(paired) for bar in plot.bars}
    bar = bars["greedy", "DPR − contrast"]
    assert (bar.sign, bar.verdict, bar.p_holm) == ("≈", "no detectable difference", ".051")
    rows = _printed(paired_table(paired)).splitlines()
    row = next(row for row in rows if "DPR − contrast" in row and "greedy" in row)
    assert ".051" in row
    assert "≈ no detectable difference" in row
    assert "contrast (+0.040)" in next(line for line in verdict_lines(paired, "dpr") if line.startswith("Greedy"))


def test_verdicts_in_words():
    def entry(difference: float, verdict: str) -> dict[str, object]:
        return {"difference": difference, "verdict": verdict}

    paired = {
        "dpr - sft": {"sampled": entry(0.1, "better"), "greedy": entry(0.0, "no detectable difference")},
        "gsil_brier - sft": {"sampled": entry(0.2, "better")},
        "spin - sft": {"sampled": entry(-0.3, "worse"), "greedy": entry(0.01, "no detectable difference")},
    }
    assert verdict_lines(paired, "sft") == [
        "Sampled answers, better than SFT: GSIL brier (+0.200), DPR (+0.100).",
        "Sampled answers, worse than SFT: SPIN (−0.300).",
        "Greedy answers, no detectable difference: SPIN (+0.010), DPR (0.000).",
    ]
    against_dpr = {"dpr - spin": {"sampled": entry(0.4, "better")}, "dpr - dft": {"sampled": entry(-0.2, "worse")}}
    assert verdict_lines(paired | against_dpr, "dpr") == [
        "Sampled answers, DPR better than: SPIN (+0.400), SFT (+0.100).",
        "Sampled answers, DPR worse than: DFT (−0.200).",
        "Greedy answers, no detectable difference between DPR and: SFT (0.000).",
    ]


def _entry(difference: float, verdict: str = "no detectable difference") -> dict[str, object]:
    return {"difference": difference, "verdict": verdict}


SHORT_SFT = {
    "sft_doubled - sft": {"sampled": _entry(0.25, "better"), "greedy": _entry(0.175, "better")},
    "dpr - sft": {"sampled": _entry(0.08, "better"), "greedy": _entry(0.02)},
    "dft - sft": {"sampled": _entry(-0.3, "worse"), "greedy": _entry(0.25, "better")},
    "spin - sft": {"sampled": _entry(0.01), "greedy": _entry(0.1, "better")},
    "dpr - sft_doubled": {"sampled": _entry(-0.17, "worse"), "greedy": _entry(-0.155, "worse")},
    "dpr - dft": {"sampled": _entry(0.38, "better"), "greedy": _entry(-0.23, "worse")},
}


def test_no_arm_has_a_gain_where_more_steps_of_sft_give_as_much():
    assert verdict_lines(SHORT_SFT, "sft", ["sft_doubled"]) == [
        "Finishing SFT gives more than any arm: +25.0 points sampled (SFT doubled), the best arm DPR +8.0. "
        "Start from a finished SFT.",
        "Sampled answers, better than SFT: SFT doubled (+0.250).",
        "Sampled answers, no gain beyond a finished SFT: DPR (+0.080).",
        "Sampled answers, no detectable difference: SPIN (+0.010).",
        "Sampled answers, worse than SFT: DFT (−0.300).",
        "Finishing SFT gives +17.5 points greedy by itself (SFT doubled). Start from a finished SFT.",
        "Greedy answers, better than SFT: DFT (+0.250), SFT doubled (+0.175).",
        "Greedy answers, no gain beyond a finished SFT: SPIN (+0.100).",
        "Greedy answers, no detectable difference: DPR (+0.020).",
    ]
    lines = verdict_lines(SHORT_SFT, "dpr", ["sft_doubled"])
    assert lines[0].startswith("Finishing SFT gives more than any arm")
    assert lines[1:4] == [
        "Sampled answers, DPR better than: DFT (+0.380).",
        "Sampled answers, DPR no gain beyond a finished SFT over: SFT (+0.080).",
        "Sampled answers, DPR worse than: SFT doubled (−0.170).",
    ]


def test_arms_have_gains_where_more_steps_change_nothing_that_can_be_detected():
    level = SHORT_SFT | {"sft_doubled - sft": {"sampled": _entry(0.25), "greedy": _entry(-0.05, "worse")}}
    assert verdict_lines(level, "sft", ["sft_doubled"]) == verdict_lines(level, "sft")
    assert "Sampled answers, better than SFT: DPR (+0.080)." in verdict_lines(level, "sft", ["sft_doubled"])
    assert "Sampled answers, better than SFT: SFT doubled (+0.250), DPR (+0.080)." in verdict_lines(SHORT_SFT, "sft")


def test_forest_places_bars_on_a_shared_axis():
    plots = {plot.measure: plot for plot in forests(example_report(1).paired)}
    assert list(plots) == ["sampled", "greedy"]
    assert plots["sampled"].marks == plots["greedy"].marks
    for plot in plots.values():
        for bar in plot.bars:
            assert bar.start <= bar.center <= bar.start + bar.width + 0.01
            assert (bar.center > plot.zero) == (bar.difference > 0)
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
    assert "▲ better" in _printed(paired_table(report.paired))
    displayed = _printed(preview_table(report.preview))
    assert "log_ratio" in displayed
    assert "▼" in displayed
    assert "score 0.4" in displayed


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
