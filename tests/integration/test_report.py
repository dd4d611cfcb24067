"""``asyncflow report`` from topics alone on a real broker, and its page in a real browser."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from pipelines.cli import logs
from pipelines.cli.main import main
from pipelines.local.topics import create_topics
from pipelines.report.facts import facts_of
from pipelines.report.gather import gather
from schemas.config import KafkaConfig, RunConfig
from tests.support.browser import Visit, open_browser, picture
from tests.support.report import WrittenRun

GROUPS, SIZE = 60, 4
EVIL = "<img src=x onerror=alert(1)>"
FACES = "😀" * 40
"""Characters of which JavaScript counts two each."""


@pytest.fixture(scope="module")
def written(broker):
    """A run of sixty groups whose learner was killed half-way; one answer is markup."""
    config = RunConfig(name="test-report", kafka=KafkaConfig(bootstrap=broker))
    create_topics(config)
    run = WrittenRun(config, GROUPS, size=SIZE, answers={GROUPS - 1: EVIL, 30: FACES})
    run.write()
    return run


@pytest.fixture(scope="module")
def file(written, tmp_path_factory):
    """The page, as the command writes it."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "configure_logging", lambda: None)
        bootstrap = written.config.kafka.bootstrap
        stdout = io.StringIO()
        patch.setattr(sys, "stdout", stdout)
        assert main(["report", written.config.name, "--bootstrap", bootstrap, "--out", str(out), "--json"]) == 0
    told = json.loads(stdout.getvalue())
    assert (told["page"], told["bytes"], told["audit"]) == (str(out), out.stat().st_size, True)
    assert len(told["faults"]) == 3
    return out


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(browser, file):
    """The page when it is ready, one for all tests; at the end nothing went wrong on it and nothing was loaded."""
    opened = Visit(browser, SimpleNamespace(url=file.as_uri()), viewport={"width": 1100, "height": 900})
    opened.page.locator("body[data-answers=ready][data-curves=ready]").wait_for(timeout=60_000)
    yield opened.page
    opened.context.close()
    assert opened.faults == []
    assert opened.foreign == []


def search(page, query):
    """How many answers the page finds."""
    page.locator("#query").fill(query)
    page.locator(f"#count[data-query='{query}']").wait_for()
    return int(page.locator("#count").inner_text().split()[0])


def close(page):
    """Closes the lineage."""
    page.locator("#lineage form button").click()


def test_a_run_is_reported_from_its_topics(written):
    facts = facts_of(gather(written.config))
    assert facts.verdict.ok, facts.verdict.faults
    assert [fault.kind for fault in facts.faults] == ["dead letter", "restart", "reward"]
    assert "generation 1 was killed, crashed or was fenced" in facts.faults[1].text
    assert facts.feedback == {"used": 2, "too_late": 1}
    assert len(facts.book) == facts.book.seen == GROUPS * SIZE
    assert facts.ends["trained"] == facts.verdict.trained == 48
    assert facts.config == ""
    titles = [curve.title for curve in facts.figures]
    assert titles[:4] == ["Reward", "Held-out prompts", "KL to the reference", "Entropy of the policy"]
    assert {"Throughput by stage", "Work for the engines", "Staleness of what was trained"} <= set(titles)
    assert all(group.prompt.startswith("Question ") for group in facts.book)


def test_the_page_says_what_happened_and_draws_every_curve(page, tmp_path):
    picture(page, tmp_path, "report")
    assert page.locator("h1").inner_text() == "test-report"
    assert page.locator("#faults li").count() == 3
    assert page.locator("#audit h2").inner_text() == "Audit: passed"
    page.locator("#figures .js-plotly-plot").first.wait_for()  # those in view are drawn, and the others for printing
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#figures .js-plotly-plot").count() == page.locator("#figures figure").count() >= 10
    page.locator("#more summary").click()
    page.locator("#others .js-plotly-plot").first.wait_for()
    assert page.locator("#others figcaption b").all_inner_texts() == ["clip_fraction"]


def test_answers_are_searched_and_lead_from_prompt_to_checkpoint(page, written, tmp_path):
    assert search(page, "") == GROUPS * SIZE
    assert search(page, "reward:null") == 2
    shown = search(page, "step:3 version:2")
    assert 0 < shown == page.locator("#list .answer").count()
    page.locator("#list .answer .span + .span").first.click()  # an answer that two versions wrote
    picture(page, tmp_path, "report-lineage")
    chain, name = page.locator("#chain").inner_text(), page.locator("#lineage-name").inner_text()
    order = ["Prompt", "Group", "Attempt", "Answer", "Trajectory record", "Step", "Version", "Checkpoint"]
    assert page.locator("#chain .what").all_inner_texts() == order
    assert "trained in step 3 of generation 1" in chain
    assert "weight version 4" in chain
    assert f"first held by that of step {written.killed_after - 2}" in chain
    assert page.evaluate("location.hash") == f"#answer={name.removeprefix('test-report/')}"
    page.locator("#chain .siblings button:not([aria-current])").first.click()
    assert page.locator("#lineage-name").inner_text() != name
    close(page)
    assert page.evaluate("location.hash") == ""


def test_changes_of_the_version_lie_between_characters(page):
    assert search(page, "😀") == SIZE
    parts = (
        page.locator("#list .answer .said")
        .first.locator(".span")
        .evaluate_all("spans => spans.map(span => span.lastChild.textContent)")
    )
    assert "".join(parts) == FACES
    assert 15 < len(parts[0]) < 25, "half of it, as half of the tokens"


def test_a_step_that_left_the_line_is_told(page, written):
    again = written.killed_after
    assert search(page, f"step:{again} fate:trained") > 0
    page.locator("#list .answer").first.click()
    told = f"step {again} of generation 1 had it too, and left the surviving line"
    assert told in page.locator("#chain").inner_text()
    close(page)


def test_a_dot_opens_its_answer_and_markup_of_a_model_is_text(page):
    assert search(page, "onerror") == SIZE
    assert EVIL in page.locator("#list .answer .said").first.inner_text()
    page.locator("#colour").select_option("fate")
    assert page.locator("#legend").inner_text().startswith("trained")
    place = page.evaluate("[projection(byId('dots')).x(shown[0]), projection(byId('dots')).y(shown[0])]")
    page.locator("#dots").click(position=dict(zip("xy", place, strict=True)))
    assert page.locator("#lineage-name").inner_text().startswith(f"test-report/0/{GROUPS - 1}/")
    close(page)


def test_nothing_overflows_on_a_phone_in_the_dark(page, tmp_path):
    page.set_viewport_size({"width": 400, "height": 800})
    page.emulate_media(color_scheme="dark")
    assert search(page, "") == GROUPS * SIZE
    page.wait_for_function("document.documentElement.scrollWidth == 400")  # plotly follows the width a little later
    page.evaluate("scrollTo(0, 0)")
    picture(page, tmp_path, "report-phone")
    page.locator("#list .answer").first.click()
    assert page.evaluate("lineage.scrollWidth - lineage.clientWidth") == 0
    assert page.evaluate("lineage.getBoundingClientRect().right") <= 400
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    close(page)
