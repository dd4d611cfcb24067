"""Which texts an answer may be."""

import pytest

from pipelines.evaluation.choices import choices_of
from schemas.prompts import EnvironmentSpec, Message, Prompt, RewardSpec
from transforms.rewards.closeness import number_in

LABEL = {"name": "label", "args": {"answer": "yes", "labels": ["yes", "maybe", "no"]}}


def prompt(name, args, **changes):
    return Prompt(messages=(Message(role="user", content="1"),), reward=RewardSpec(name=name, args=args), **changes)


def test_labels_are_those_of_the_reward_and_whoever_else_judges_changes_nothing():
    assert choices_of(prompt(**LABEL)) == ("yes", "maybe", "no")
    assert choices_of(prompt("feedback", {"verifiable": LABEL, "share": 0.5})) == ("yes", "maybe", "no")


def test_similarities_are_in_steps_of_a_fifth_each_of_which_the_reward_reads():
    found = choices_of(prompt("closeness", {"answer": 3.8, "lowest": 0, "highest": 5}))
    assert found[:7] == ("0", "0.2", "0.4", "0.6", "0.8", "1", "1.2")
    assert found[-2:] == ("4.8", "5")
    assert [number_in(text, 0, 5) for text in found] == pytest.approx([step / 5 for step in range(26)])


@pytest.mark.parametrize(
    "free",
    [
        prompt("last_number", {"answer": "5"}),
        prompt("feedback", {}),
        prompt(**LABEL, environment=EnvironmentSpec(name="guess_number", args={"secret": 3})),
        prompt("environment", {}, environment=EnvironmentSpec(name="guess_number", args={"secret": 3})),
    ],
)
def test_where_anything_may_be_right_answers_are_free(free):
    assert choices_of(free) == ()
