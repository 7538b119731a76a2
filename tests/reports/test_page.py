import os
import re

import pytest

from dpr_lightning.errors import InputError
from dpr_lightning.reports import Report, Response, write_heatmap, write_report
from dpr_lightning.reports.page import flattened
from tests.reports.example import HARM, example_pair, example_report


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("report") / "report.html", example_report()).read_text("utf-8")


def test_text_of_models_stays_text(html):
    assert html.count("<script>") == 1
    assert HARM not in html
    assert "&lt;script&gt;window.harmed = true&lt;/script&gt;" in html


def test_the_page_names_no_address(html):
    assert not re.findall(r"(?:https?:)?//[a-z]", html)
    assert not re.findall(r"""\b(?:src|href)=["'](?!#|data:)""", html.replace("src=x", ""))
    assert len(html.encode()) < 2_000_000


def test_every_token_is_there(html):
    report = example_report()
    responses = [side for pair in report.pairs for side in (pair.correct, pair.wrong)] + [*report.rollouts]
    tokens = sum(len(response.tokens) for response in responses)
    assert len(re.findall(r'<span class="token[ "]', html)) == tokens


def test_numbers_of_the_results_are_there(html):
    for text in ("0.618", "+0.145", "[+0.098, +0.193]", "SFT low temperature", "make quickstart", "policy.hidden_size"):
        assert text in html


def test_a_report_of_a_verdict_alone(tmp_path):
    text = write_report(tmp_path / "r.html", Report("t", "Nothing was run.")).read_text("utf-8")
    assert "Nothing was run." in text
    assert "<section" not in text


def test_a_failed_report_leaves_the_old_one(tmp_path):
    path = write_report(tmp_path / "r.html", Report("t", "first"))
    ragged = Response(["a", "b"], [0.1], [0.1], [0.1])
    with pytest.raises(InputError):
        write_heatmap(path, [ragged])
    assert "first" in path.read_text("utf-8")
    assert os.listdir(tmp_path) == ["r.html"]


def test_a_heatmap_says_what_it_leaves_out(tmp_path):
    rows = [example_pair(seed).correct for seed in range(5)]
    text = write_heatmap(tmp_path / "h.html", rows, limit=3).read_text("utf-8")
    assert text.count('<article class="sample"') == 3
    assert "The first 3 of 5 responses" in text
    assert "There are no responses." in write_heatmap(tmp_path / "e.html", []).read_text("utf-8")


def test_rewards_that_are_not_finite_do_not_stop_a_report(tmp_path):
    odd = Response(["a", "b"], [float("nan"), float("-inf")], [0.0, 0.0], [0.0, float("inf")])
    assert "nan" in write_heatmap(tmp_path / "h.html", [odd]).read_text("utf-8")


def test_settings_are_flattened():
    assert flattened({"a": {"b": 1, "c": [1, 2]}, "d": {}}) == [("a.b", "1"), ("a.c", "1, 2"), ("d", "{}")]
