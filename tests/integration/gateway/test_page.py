"""The page in a real browser: chat, judge, correct, withdraw, and see what it did."""

import re

import pytest

from schemas.exchanges import Exchange
from schemas.identity import FEEDBACK, GroupId, RolloutId
from tests.support.browser import Visit, picture
from tests.support.gateway import Gateway, Others, tokens_of
from tests.support.trajectories import read_all, wait_until

EVIL = '<img src="x" onerror="alert(1)"><script>alert(2)</script>'


@pytest.fixture
def key_file(tmp_path):
    (tmp_path / "key").write_text("0123456789abcdef")
    return str(tmp_path / "key")


@pytest.fixture
def visit(browser, gateway):
    opened = Visit(browser, gateway, viewport={"width": 900, "height": 760})
    yield opened
    opened.context.close()
    assert opened.faults == []
    assert [url for url in opened.foreign if not url.startswith("data:")] == []


@pytest.fixture
def others(gateway):
    return Others(gateway.config)


def test_a_person_chats_votes_and_sees_what_it_did(visit, gateway, engine, others, tmp_path):
    others.announce(3, 2)
    engine.token_s = 0.01
    engine.answers.extend([tokens_of("2+3 is 6, i think."), tokens_of("it is 5.")])
    visit.page.get_by_text("weights v3").wait_for()

    turn = visit.ask("What is 2+3?")
    assert turn.locator(".text").inner_text() == "2+3 is 6, i think."
    assert turn.locator(".versions").inner_text() == "v3"
    rollout = RolloutId.parse(turn.locator(".name").inner_text())

    turn.get_by_role("button", name="Bad").click()
    turn.get_by_text("received").wait_for()
    assert turn.get_by_role("button", name="Bad").get_attribute("aria-pressed") == "true"
    ((place, thumb),) = others.judgements(1)
    assert (thumb.kind, thumb.value, thumb.rollout) == ("thumb", -1.0, rollout)
    assert thumb.user.startswith("web-")

    turn.get_by_text("Correct it").click()
    turn.locator(".correction").fill("2+3 is 5.")
    turn.get_by_role("button", name="Send the correction").click()
    turn.locator(".fate").nth(1).wait_for()
    picture(visit.page, tmp_path, "gateway-judged")
    placed, correction = others.judgements(2)[1]
    if placed == place:
        placed, correction = others.judgements(2)[0]
    assert (correction.kind, correction.value, correction.user) == ("correction", "2+3 is 5.", thumb.user)

    others.use(place, thumb, (rollout.group,))
    others.use(placed, correction, (rollout.group, own := GroupId(FEEDBACK + placed[0], placed[1])))
    turn.get_by_text("waits for a step of the learner").first.wait_for()
    others.train(3, 4, rollout.group, own)
    engine.version = 4
    turn.get_by_text("trained step 3").first.wait_for()
    visit.page.get_by_text("weights v4").wait_for()

    second = visit.ask("And now?")
    assert second.locator(".text").inner_text() == "it is 5."
    assert second.locator(".versions").inner_text() == "v4"
    said = [message["content"] for message in _conversation(gateway)[-1]]
    assert said == ["What is 2+3?", "2+3 is 6, i think.", "And now?"]
    picture(visit.page, tmp_path, "gateway-trained")


def _conversation(gateway):
    records = read_all(gateway.config, gateway.config.topics.exchanges)
    exchanges = sorted((Exchange.decode(record.value) for record in records), key=lambda each: each.at)
    return [[message.model_dump() for message in each.messages] for each in exchanges]


def test_a_judgement_is_changed_and_withdrawn(visit, engine, others):
    engine.answers.append(tokens_of("hello"))
    turn = visit.ask("Hi")
    turn.get_by_role("button", name="Good").click()
    others.judgements(1)
    turn.locator(".score").fill("-0.5")
    assert turn.locator("output").inner_text() == "-0.5"
    turn.get_by_role("button", name="Give").click()
    others.judgements(2)
    turn.get_by_role("button", name="Withdraw").click()
    told = {each.kind: (each.value, each.user) for _, each in others.judgements(3)}
    (user,) = {user for _, user in told.values()}
    assert told == {"thumb": (1.0, user), "score": (-0.5, user), "retract": (None, user)}
    assert turn.get_by_role("button", name="Good").get_attribute("aria-pressed") == "false"


def test_what_a_model_or_a_person_says_is_never_markup(visit, engine, others):
    engine.answers.append(tokens_of(EVIL))
    turn = visit.ask(EVIL)
    assert turn.locator(".text").inner_text() == EVIL
    assert turn.locator(".question").inner_text() == EVIL
    turn.get_by_text("Correct it").click()
    assert turn.locator(".correction").input_value() == EVIL
    turn.get_by_role("button", name="Send the correction").click()
    turn.get_by_text("received").wait_for()
    assert others.judgements(1)[0][1].value == EVIL
    assert visit.page.locator("#conversation img, #conversation script").count() == 0


def test_an_answer_that_breaks_off_says_so_and_the_next_is_asked_without_it(visit, gateway, engine):
    engine.faults.append("break_off")
    engine.answers.extend([tokens_of("0123456789"), tokens_of("fine")])
    turn = visit.ask("Count.")
    assert "broke off" in turn.locator(".answer .notice").inner_text()
    assert turn.locator(".text").inner_text() == "012345"
    assert not turn.locator(".judge").is_visible()
    assert visit.ask("Hi").locator(".text").inner_text() == "fine"
    assert len(_conversation(gateway)[-1]) == 1


def test_a_person_stops_an_answer(visit, engine):
    engine.token_s = 0.05
    engine.answers.append(tokens_of("a" * 60))
    visit.page.locator("#question").fill("Long.")
    visit.page.locator("#send").click()
    visit.page.locator(".text", has_text="aaa").wait_for()
    visit.page.locator("#stop").click()
    visit.page.get_by_text("not recorded").wait_for()
    wait_until(lambda: engine.aborted == 1, 10)


def test_everything_can_be_done_by_keyboard(visit, engine, others):
    engine.answers.append(tokens_of("hello"))
    visit.page.keyboard.type("Hi")
    visit.page.keyboard.press("Enter")
    turn = visit.page.locator(".turn")
    turn.locator(".judge").wait_for()
    visit.page.keyboard.press("Shift+Tab")
    for _ in range(10):
        if visit.page.evaluate("document.activeElement.innerText").strip().endswith("Good"):
            break
        visit.page.keyboard.press("Shift+Tab")
    visit.page.keyboard.press("Space")
    assert others.judgements(1)[0][1].value == 1.0


def test_a_receipt_travels_with_the_page(browser, make_config, key_file, engine, tmp_path):
    with Gateway(make_config(feedback={"key_file": key_file})) as gateway:
        phone = {"viewport": {"width": 360, "height": 700}, "color_scheme": "dark"}
        visit = Visit(browser, gateway, **phone)
        engine.answers.append(tokens_of("bonjour. " + "tres" * 15))
        turn = visit.ask("Say hello in French, and a word that is very long.")
        turn.get_by_role("button", name="Good").click()
        turn.get_by_text("received").wait_for()
        ((_, feedback),) = Others(gateway.config).judgements(1)
        assert re.fullmatch(r"1\.\d+\.[A-Za-z0-9_-]{43}", feedback.receipt)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
        picture(visit.page, tmp_path, "gateway-phone")

        visit.context.clear_cookies()
        turn.get_by_role("button", name="Bad").click()
        turn.get_by_text("Not taken: the receipt is not one for this user").wait_for()
        assert len(Others(gateway.config).judgements(1)) == 1
        visit.context.close()


def test_the_page_of_one_answer(visit, engine, others, gateway):
    engine.answers.append(tokens_of("hello"))
    turn = visit.ask("Hi")
    turn.get_by_role("button", name="Good").click()
    turn.get_by_text("received").wait_for()
    turn.locator(".name").click()
    visit.page.get_by_text("Nothing was decided about this answer yet.").wait_for()
    ((place, thumb),) = others.judgements(1)
    others.use(place, thumb, (thumb.group,))
    others.train(7, 8, thumb.group)
    visit.page.get_by_text("trained step 7").wait_for()
    visit.page.reload()
    visit.page.get_by_text("This answer went to the learner.").wait_for()
