"""The support agents: which answers they think right, and what they would have said."""

from pathlib import Path

import pytest

from pipelines.simulation.application import Question
from pipelines.simulation.support import ANSWERS, POLICY, Agents, keeps_policy, names, open_support
from pipelines.tasks.support import LABELS, ask
from schemas.config import load
from schemas.errors import ConfigError

EXAMPLE = Path(__file__).parents[4] / "docs" / "examples" / "support.toml"


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("order: I will look into your order.", set()),
        ("  Order : I look into it. ", set()),
        ("shipping  address: I see to it.", set()),
        ("payment: I pass you on to a colleague of mine.", set()),
        ("order", {"has_form"}),
        ("order:", {"has_form"}),
        ("I will look into your order.", {"has_form"}),
        ("parcels: I will look into them.", {"has_form"}),
        ("order: I ask what became of your delivery.", {"has_form"}),
        ("order: one two three four five six seven eight nine ten eleven twelve", set()),
        ("order: one two three four five six seven eight nine ten eleven twelve thirteen", {"is_short"}),
        ("order: I look\ninto it.", {"is_short"}),
        ("order: You get your money back.", {"promises_nothing"}),
        ("order: We pay it back.", {"promises_nothing"}),
        ("order: We reimburse you.", {"promises_nothing"}),
        ("payment: I will look into it.", {"hands_over"}),
        ("refund: A colleague is glad to help.", {"hands_over"}),
        ("refund: I hand you over to a colleague who refunds it.", {"promises_nothing"}),
        ("refund: You will be refunded.", {"promises_nothing", "hands_over"}),
        ("", {"has_form"}),
    ],
)
def test_each_rule_of_the_policy_says_what_it_says(text, broken):
    assert {rule.__name__ for rule in POLICY if not rule(text)} == broken
    assert keeps_policy(text) == (not broken)


@pytest.mark.parametrize(
    ("text", "desk", "right"),
    [
        ("order: yes", "order", True),
        ("This is about an ORDER.", "order", True),
        ("order: yes", "refund", False),
        ("order or refund", "refund", False),
        ("reorder", "order", False),
    ],
)
def test_the_intent_is_the_one_desk_that_is_named(text, desk, right):
    assert names(text, desk) == right


@pytest.mark.parametrize("desk", LABELS)
def test_what_agents_would_have_said_is_right_for_its_desk_alone(desk):
    agents = Agents(())
    for about in LABELS:
        verdict = agents.judge(0, Question("?", about), ANSWERS[desk])
        assert verdict.parts == {"intent": about == desk, "policy": True}
        assert verdict.likes == (about == desk)
    assert agents.correct(Question("?", desk)) == ANSWERS[desk]


def test_messages_come_with_the_desk_that_handles_them(tmp_path):
    (tmp_path / "bitext").mkdir()
    rows = 'utterance,intent,category\n"where is it, please",track_order,ORDER\nnew flat,set_up,SHIPPING_ADDRESS\n'
    (tmp_path / "bitext" / "train.csv").write_text(rows)
    agents = open_support(tmp_path)
    assert agents.questions == (
        Question(ask("where is it, please"), "order"), Question(ask("new flat"), "shipping address"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"bitext/test.csv"):
        open_support(tmp_path, "held_out")


def test_the_page_asks_and_offers_what_the_agents_do():
    page = load(EXAMPLE).gateway.page
    assert page.template == ask("{text}")
    assert page.choices == ANSWERS
    assert page.task == Agents(()).task
