"""The pages of the example applications in a real browser, as their configurations make them."""

import tomllib
from pathlib import Path

import pytest

from schemas.config import WorkerConfig
from schemas.exchanges import Exchange
from schemas.gateway import PageConfig
from tests.support.browser import Visit, picture
from tests.support.gateway import Gateway, Others, tokens_of
from tests.support.trajectories import read_all

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
PHONE = {"viewport": {"width": 360, "height": 700}}
EVIL = """'"><img src=x onerror=alert(1)>{{ 7*7 }} $& </textarea></template><script>alert(2)</script>"""


@pytest.fixture
def open_page(browser, make_config):
    """Opens the page of an application; at the end there must have been no fault on it."""
    opened = []

    def open_one(page, title, **context):
        config = make_config(page=page, title=title)
        config = config.model_copy(update={"worker": WorkerConfig(max_model_len_tokens=2048)})
        gateway = Gateway(config).__enter__()
        visit = Visit(browser, gateway, **context or {"viewport": {"width": 900, "height": 620}})
        opened.append((gateway, visit))
        return visit, Others(config)

    yield open_one
    for gateway, visit in opened:
        visit.context.close()
        gateway.__exit__()
        assert visit.faults == []
        assert [url for url in visit.foreign if not url.startswith("data:")] == []


def example(name):
    """The page of an example, and its title."""
    section = tomllib.loads((EXAMPLES / f"{name}.toml").read_text())["gateway"]
    return PageConfig(**section["page"]), section["title"]


def asked(config):
    """The exchanges, the oldest first."""
    records = read_all(config, config.topics.exchanges)
    return sorted((Exchange.decode(record.value) for record in records), key=lambda each: each.at)


def test_translation_is_mended_where_it_stands(open_page, engine, run_config, tmp_path):
    page, title = example("translation")
    visit, others = open_page(page, title)
    others.announce(3, 2)
    visit.page.get_by_text("weights v3").wait_for()
    engine.answers.extend([tokens_of("Der Hund rennt auf Strand."), tokens_of("Eine Frau in rot.")])

    visit.page.get_by_role("button", name=page.examples[0]).click()
    assert visit.page.locator("#question").input_value() == page.examples[0]
    turn = visit.ask("The dog runs on the beach.")
    box = turn.get_by_label(page.correct_label)
    assert box.input_value() == "Der Hund rennt auf Strand."
    box.fill("Der Hund rennt am Strand.")
    turn.get_by_role("button", name="Send the correction").click()
    turn.get_by_text("received").wait_for()
    ((_, given),) = others.judgements(1)
    assert (given.kind, given.value) == ("correction", "Der Hund rennt am Strand.")
    assert turn.get_by_text("Score").count() == 0
    picture(visit.page, tmp_path, "application-translation")

    visit.ask("A woman in red.")
    first, second = asked(run_config)
    assert [message.content for message in first.messages] == ["Translate into German: The dog runs on the beach."]
    assert [message.content for message in second.messages] == ["Translate into German: A woman in red."]
    assert first.task == "translation-de"


def test_support_is_corrected_by_one_click(open_page, engine, tmp_path):
    page, title = example("support")
    visit, others = open_page(page, title, viewport={"width": 900, "height": 820})
    others.announce(3, 2)
    visit.page.get_by_text("weights v3").wait_for()
    engine.answers.append(tokens_of("order: I have a look."))
    turn = visit.ask("My card was charged twice")
    turn.get_by_role("button", name="Bad").click()
    others.judgements(1)
    choice = turn.get_by_role("button", name="payment", exact=True)
    choice.click()
    turn.locator(".fate").nth(1).wait_for()
    told = {each.kind: each.value for _, each in others.judgements(2)}
    assert told == {"thumb": -1.0, "correction": page.choices["payment"]}
    assert choice.get_attribute("aria-pressed") == "true"
    assert turn.get_by_role("button", name="Bad").get_attribute("aria-pressed") == "true"
    assert turn.locator("textarea").count() == 0
    picture(visit.page, tmp_path, "application-support")

    turn.get_by_role("button", name="refund", exact=True).click()
    others.judgements(3)
    turn.locator(".choice[aria-pressed=true]", has_text="refund").wait_for()
    assert turn.locator("[aria-pressed=true]").count() == 2
    turn.get_by_role("button", name="Withdraw").click()
    others.judgements(4)
    turn.locator(".judge:not(:has([aria-pressed=true]))").wait_for()


@pytest.mark.parametrize("name", ["translation", "support"])
def test_an_application_fits_a_phone(name, open_page, engine, tmp_path):
    page, title = example(name)
    visit, others = open_page(page, title, **PHONE)
    others.announce(3, 2)
    visit.page.get_by_text("weights v3").wait_for()
    engine.answers.append(tokens_of("order: I have a look."))
    visit.ask(page.examples[0])
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
    picture(visit.page, tmp_path, f"application-{name}-phone")


def test_words_of_a_configuration_are_never_markup(open_page, engine, run_config):
    texts = {"ask_label": EVIL, "hint": EVIL, "examples": (EVIL,), "correct_label": EVIL, "choices": {EVIL: EVIL}}
    visit, others = open_page(PageConfig(template=EVIL + "{text}{text}", task=EVIL, **texts), EVIL)
    assert visit.page.locator("#hint").inner_text() == EVIL
    engine.answers.append(tokens_of("fine"))
    visit.page.locator(".example").click()
    assert visit.page.locator("#question").input_value() == EVIL
    turn = visit.ask("$&{text}")
    assert asked(run_config)[0].messages[0].content == EVIL + "$&{text}$&{text}"
    assert asked(run_config)[0].task == EVIL
    turn.locator(".choice").click()
    assert others.judgements(1)[0][1].value == EVIL
    assert visit.page.locator("body img, body script").count() == 0
