"""Simulated support agents before a real gateway: what they send is what they think of what they were answered."""

import pytest

from pipelines.simulation.application import Question
from pipelines.simulation.population import Habits
from pipelines.simulation.run import Simulation, simulate
from pipelines.simulation.support import ANSWERS, Agents
from schemas.exchanges import Exchange
from schemas.feedback import Feedback
from tests.support.gateway import Gateway, tokens_of
from tests.support.trajectories import read_all

RIGHT, WRONG_DESK, NO_FORM = ANSWERS["order"], ANSWERS["delivery"], "it is an order"


@pytest.fixture
def talk(make_config, engine, tmp_path):
    """One agent asks the same question until there are so many answers; figures and judgements."""
    (tmp_path / "key").write_text("0123456789abcdef")
    config = make_config(feedback={"key_file": str(tmp_path / "key")})

    def simulation(texts, **habits):
        engine.answers.extend(tokens_of(text) for text in texts)
        agents = Agents((Question("Where is it? What is this about?", "order"),))
        with Gateway(config) as gateway:
            figures = simulate(
                Simulation(
                    gateway=gateway.url,
                    application=agents,
                    users=1,
                    answers=len(texts),
                    habits=Habits(noise=0.0, delay_s=0.0, dropout=0.0, **habits),
                    seed=1,
                    window=len(texts),
                    max_tokens=60,
                )
            )
        given = [Feedback.decode(record.value) for record in read_all(config, config.topics.feedback)]
        exchanges = [Exchange.decode(record.value) for record in read_all(config, config.topics.exchanges)]
        return figures, given, exchanges

    return simulation


def test_a_right_answer_is_liked_and_a_wrong_one_corrected(talk):
    figures, given, exchanges = talk([RIGHT, WRONG_DESK, NO_FORM], corrections=1.0)
    (window,) = figures["before_change"]
    assert window["liked"] == pytest.approx(1 / 3)
    assert window["parts"] == pytest.approx({"intent": 2 / 3, "policy": 2 / 3})
    assert (figures["judgements"], figures["corrections"], figures["recovery"]) == (5, 2, None)
    assert {exchange.task for exchange in exchanges} == {"support"}
    assert sorted(each.value for each in given if each.kind == "thumb") == [-1.0, -1.0, 1.0]
    corrections = [each for each in given if each.kind == "correction"]
    assert [each.value for each in corrections] == [RIGHT, RIGHT]
    disliked = {each.rollout_id for each in given if each.value == -1.0}
    assert {each.rollout_id for each in corrections} == disliked
    assert all(each.receipt for each in given)


def test_without_corrections_there_are_thumbs_alone(talk):
    figures, given, _ = talk([WRONG_DESK, NO_FORM])
    assert {each.kind for each in given} == {"thumb"}
    assert figures["corrections"] == 0
