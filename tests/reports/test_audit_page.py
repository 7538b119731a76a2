"""The page of an audit in a real browser: order, filter, keys, and the file of rows that a reader marked."""

import json
from pathlib import Path

import pytest

from dpr_lightning.reports import AuditedRow, ListTrust, Panel, Response, Series, write_audit_page
from tests.reports.example import HARM

SPAN = {"start": 1, "end": 2, "weight": 0.0, "text": "'<é", "suspicion": 1.5}
NAMES = ["mine.jsonl:7", "mine.jsonl:3", "mine.jsonl:12"]


def audited(number: int, rewards: list[float], token: int, text: str, *spans: dict[str, object]) -> AuditedRow:
    tokens = [*"1+1=3"[: len(rewards) - 1], text]
    policy = [-1.0 + min(reward, 0.0) for reward in rewards]
    reference = [logprob - reward for logprob, reward in zip(policy, rewards, strict=True)]
    response = Response(tokens, rewards, policy, reference, prompt=f"question {number}")
    return AuditedRow("mine.jsonl", number, f"hash{number}", token, response, spans)


@pytest.fixture
def rows() -> list[AuditedRow]:
    """Lowest tokens −3, −2, −1; totals −3, −4 and −1: the two orders differ."""
    return [
        audited(7, [0.0, 0.0, -3.0], 2, HARM),
        audited(3, [-2.0, -2.0, 0.0], 0, "é'\n"),
        audited(12, [0.0, -1.0, 0.0], 1, "c", SPAN),
    ]


def names(page) -> list[str]:
    return page.locator(".sample:visible .facing > b").all_text_contents()


def test_rows_have_their_token_and_the_models_probabilities(open_page, rows, tmp_path) -> None:
    page = open_page(write_audit_page(tmp_path / "audit.html", rows, reward="one_sided against early", total=90))
    assert names(page) == NAMES
    assert "3 of 90 rows. Reward: one_sided against early" in page.locator("header").inner_text()
    first = page.locator(".sample").first
    assert HARM in first.locator(".token.marked").inner_text()
    assert "π_SFT finds this token less probable (0.018) than the reference did (0.368)" in first.inner_text()
    assert "total −3.00 nats, 3 tokens" in first.inner_text()
    assert page.evaluate("window.harmed") is None
    first.locator(".token").nth(0).hover()
    assert "reward +0.000 nats" in page.locator("#tooltip").inner_text()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_says_how_far_to_trust_the_list(open_page, rows, tmp_path) -> None:
    panel = Panel("Precision of the list", [Series("precision", [0.5, 1.0], [1.0, 0.5])], levels={"chance": 0.1})
    trust = ListTrust(f"Of 2 mistakes {HARM}", [(10, 1), (25, 2)], 2, 0.75, panel)
    page = open_page(write_audit_page(tmp_path / "train.html", rows, reward="r", total=3, learnt="Late.", trust=trust))
    section = page.locator("#trust")
    assert HARM in section.inner_text()
    cells = [line.split("\t") for line in section.locator("table").inner_text().splitlines()]
    assert cells[-2:] == [["10", "1", "0.10", "0.50"], ["25", "2", "0.08", "1.00"]]
    assert section.locator("path.curve").count() == 1
    assert "Average precision 0.75, of a random order 0.10" in section.inner_text()
    assert page.evaluate("window.harmed") is None
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_order_and_filter(open_page, rows, tmp_path) -> None:
    page = open_page(write_audit_page(tmp_path / "audit.html", rows, reward="r", total=3))
    page.locator(".order").select_option("total")
    assert names(page) == [NAMES[1], NAMES[0], NAMES[2]]
    page.locator(".filter").fill("question 12")
    assert names(page) == [NAMES[2]]
    page.locator(".filter").fill("")
    page.locator(".order").select_option("token")
    assert names(page) == NAMES


def test_rows_that_were_trained_on_have_the_order_of_their_suspicion(open_page, tmp_path) -> None:
    rows = [
        audited(1, [-0.5, -0.5, -0.5, -0.5], 0, "c"),
        audited(2, [-0.4, -0.1], 0, "c"),
        audited(3, [0.0, -0.1, -1.8, 0.0, 0.0, 0.0], 2, "c"),
    ]
    page = open_page(write_audit_page(tmp_path / "train.html", rows, reward="margin", total=3, learnt="Late rows."))
    assert names(page) == ["mine.jsonl:1", "mine.jsonl:2", "mine.jsonl:3"]
    header = page.locator("header").inner_text()
    assert "These rows were trained on" in header
    assert "Late rows." in header
    assert "this token preferred" in header  # no reward: margins over other tokens
    assert "at the end of the run is" in page.locator(".sample").first.inner_text()
    page.locator(".sample .token").first.hover()
    assert "margin −0.500 nats" in page.locator("#tooltip").inner_text()
    page.locator(".order").select_option("token")
    assert names(page) == ["mine.jsonl:3", "mine.jsonl:1", "mine.jsonl:2"]


def test_rows_are_marked_by_keys_and_exported(open_page, rows, tmp_path) -> None:
    page = open_page(write_audit_page(tmp_path / "audit.html", rows, reward="r", total=3))
    button = page.get_by_role("button", name="Export flagged.jsonl")
    assert button.is_disabled()
    page.keyboard.press("x")  # no row yet
    page.keyboard.press("k")  # the first
    page.keyboard.press("x")
    page.keyboard.press("x")  # again: not wrong
    for key in "jxjxk":
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.querySelector('b').textContent") == NAMES[1]
    page.locator(".filter").press_sequentially("xjk")
    page.locator(".filter").fill("")
    assert page.locator(".marked").first.is_visible()
    assert page.locator(".tools .marked").inner_text() == "2 marked wrong"
    with page.expect_download() as download:
        button.click()
    assert download.value.suggested_filename == "flagged.jsonl"
    lines = Path(download.value.path()).read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"file": "mine.jsonl", "row": 3, "hash": "hash3", "token": "1", "reward": -2.0, "loss_spans": []},
        {"file": "mine.jsonl", "row": 12, "hash": "hash12", "token": "+", "reward": -1.0, "loss_spans": [SPAN]},
    ]
    assert list(json.loads(lines[0])) == ["file", "row", "hash", "token", "reward", "loss_spans"]


def test_marks_that_were_not_exported_are_not_lost_by_mistake(open_page, rows, tmp_path) -> None:
    page = open_page(write_audit_page(tmp_path / "audit.html", rows, reward="r", total=3))
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.type), dialog.accept()))
    page.locator(".sample input").first.check()
    page.reload()
    assert dialogs == ["beforeunload"]
