"""The report in a real browser: what a reader sees, and that nothing leaves the page."""

import pytest

from dpr_lightning.reports import write_heatmap, write_report
from tests.reports.example import example_pair, example_report


@pytest.fixture(scope="module")
def report_path(tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("browser") / "report.html", example_report())


def test_tokens_show_their_rewards_on_hover_and_focus(open_page, report_path):
    page = open_page(report_path)
    pairs = example_report().pairs
    expected = sum(len(side.tokens) for pair in pairs for side in (pair.correct, pair.wrong))
    assert page.locator("#tokens .token").count() == expected
    tooltip = page.locator("#tooltip")
    assert not tooltip.is_visible()

    first = page.locator("#tokens .token").first
    first.hover()
    assert tooltip.is_visible()
    sft = f"{pairs[0].correct.policy_logprob[0]:.3f}".replace("-", "−")
    text = tooltip.inner_text()
    for part in (f"“{pairs[0].correct.tokens[0]}”", f"log π_SFT {sft}", "log π_ref", "r̂", "nats"):
        assert part in text

    page.mouse.move(0, 0)
    assert not tooltip.is_visible()
    first.focus()
    assert tooltip.is_visible()
    page.keyboard.press("ArrowRight")
    assert f"“{pairs[0].correct.tokens[1]}”" in tooltip.inner_text()
    assert page.evaluate("document.querySelectorAll('#tokens .token[tabindex=\"0\"]').length") == 2 * len(pairs)


def test_colours_follow_the_rewards(open_page, report_path):
    page = open_page(report_path)
    wrong = example_report().pairs[1].wrong
    slip = min(range(len(wrong.reward)), key=lambda index: wrong.reward[index])
    token = page.locator("#tokens .sample").nth(1).locator(".side").nth(1).locator(".token").nth(slip)
    assert "less" in token.get_attribute("class").split()
    assert token.get_attribute("style") == "--s:100"
    assert token.evaluate("element => getComputedStyle(element).backgroundColor") != "rgba(0, 0, 0, 0)"


def test_markup_in_a_completion_does_not_run(open_page, report_path):
    page = open_page(report_path)
    assert page.evaluate("window.harmed") is None
    assert page.locator("img").count() == 0
    assert "window.harmed" in page.locator("#tokens").inner_text()


def test_a_script_that_did_get_in_would_not_run(browser, tmp_path, report_path):
    """The second wall: even unescaped, the content security policy refuses a script that is not the page's own."""
    broken = tmp_path / "broken.html"
    text = report_path.read_text("utf-8")
    broken.write_text(text.replace("</main>", "<script>window.harmed = true</script></main>"), "utf-8")
    page, complaints = browser.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(broken.as_uri())
    assert page.evaluate("window.harmed") is None
    assert any("Content Security Policy" in complaint for complaint in complaints)
    page.close()


def test_filter(open_page, report_path):
    page = open_page(report_path)
    samples = page.locator("#tokens .sample:visible")
    assert samples.count() == 8
    page.locator("#tokens .filter").fill(example_report().pairs[3].prompt)
    assert samples.count() == 1
    assert page.locator("#tokens .count").inner_text() == "1 of 8"
    page.locator("#tokens .filter").fill("no such text")
    assert samples.count() == 0
    page.locator("#tokens .filter").fill("")
    assert samples.count() == 8


def test_answers_are_searched_by_what_became_of_them(open_page, report_path):
    page = open_page(report_path)
    samples, count = page.locator("#samples .sample:visible"), page.locator("#samples .count")
    assert count.inner_text() == "10 of 10"
    page.locator("#samples .which").select_option("wrong dpr")
    assert count.inner_text() == "8 of 10"
    page.locator("#samples .which").select_option("right spin")
    assert samples.locator(".prompt").all_text_contents() == ["0 + 0 =", "5 + 5 ="]
    page.locator("#samples .which").select_option("disagree")
    assert samples.count() == 8
    page.locator("#samples .filter").fill("Answer: 14")
    assert samples.locator(".prompt").all_text_contents() == ["7 + 7 ="]
    # The other browser of the page keeps its own.
    assert page.locator("#tokens .sample:visible").count() == 8


def test_a_reader_chooses_whose_answers_are_shown(open_page, report_path):
    page = open_page(report_path)
    first = page.locator("#samples .sample").first
    assert first.locator(".side:visible").count() == 4
    page.locator("#samples .policies summary").click()
    page.locator("#samples .policies input[value=oracle]").check()
    page.locator("#samples .policies input[value=dpr]").uncheck()
    displayed = first.locator(".side:visible").evaluate_all("sides => sides.map(side => side.dataset.policy)")
    assert displayed == ["sft", "contrast", "spin", "oracle"]


def test_points_say_what_they_are(open_page, report_path):
    page = open_page(report_path)
    marks = page.locator("#reward .mark")
    assert marks.count() == 50
    assert page.locator("#reward .mark.wrong").count() == 17
    marks.nth(20).hover()
    assert page.locator("#tooltip").inner_text().splitlines()[:2] == ["prompt 20, right", "length, tokens: 50"]
    longest, shortest = (float(marks.nth(index).get_attribute("cx")) for index in (49, 0))
    assert longest > shortest


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_does_not_scroll_sideways(open_page, report_path, scheme):
    page = open_page(report_path, color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(paper.removeprefix("rgb(").split(",")[0]) > 127) == (scheme == "light")


def test_curves_name_their_values(open_page, report_path):
    page = open_page(report_path)
    plots = page.locator("#curves .plot")
    assert plots.count() == 8
    plots.first.hover()
    text = page.locator("#tooltip").inner_text()
    assert "step" in text
    assert "training" in text
    assert "validation" in text


def test_cells_of_the_preview_explain_themselves(open_page, report_path):
    page = open_page(report_path)
    page.locator(".preview td[data-tip]").first.focus()
    assert "samples carry the weight" in page.locator("#tooltip").inner_text()


def test_heatmap_of_responses(open_page, tmp_path):
    rows = [side for seed in range(30) for side in (example_pair(seed).correct, example_pair(seed).wrong)]
    page = open_page(write_heatmap(tmp_path / "heat.html", rows, title="Token rewards of a file"))
    assert page.locator(".sample").count() == 60
    page.locator(".which").select_option("wrong")
    assert page.locator(".count").inner_text() == "30 of 60"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_samples_over_training_have_their_rewards_and_steps(open_page, report_path):
    page = open_page(report_path)
    samples, count = page.locator("#rollouts .sample:visible"), page.locator("#rollouts .count")
    assert count.inner_text() == "3 of 3"
    page.locator("#rollouts .which").select_option("step 1")
    assert samples.locator(".prompt").all_text_contents() == ["prompt 1"]
    token = samples.locator(".token").nth(1)
    assert "less" in token.get_attribute("class").split()
    token.hover()
    assert page.locator("#tooltip").inner_text() == "“+”\nreward −2.000 nats"
    assert "ab12" in page.locator("#reproduce .facts").first.inner_text()
    # Elsewhere on the page all is as before.
    assert page.locator("#tokens .sample:visible").count() == 8
