"""The ledger joined with the trajectories: which end a group came to, and which advantages its step computed."""

from dataclasses import replace

import pytest

from pipelines.fates import NEEDED, Fate, Fates, StepsAgain
from schemas.config import validate
from schemas.dead_letters import DeadLetter
from schemas.identity import GroupId
from schemas.ledger import DroppedGroup, Position, StartEntry, StepEntry, TrainedGroup
from schemas.trajectories import decode_columns, encode
from tests.support.samples import group
from trainers.advantages import Advantages

TOPIC = "demo.trajectories"


def trained(partition, offset, at):
    return TrainedGroup(group=GroupId(partition, offset), at=at, attempt="a1", samples=2, versions=(1, 1))


def dropped(partition, offset, at, reason="stale"):
    return DroppedGroup(group=GroupId(partition, offset), at=at, reason=reason)


def step(number, *ended, generation=1, version=None):
    return StepEntry(
        generation=generation, step=number, version=version or number + 1,
        trained=tuple(each for each in ended if isinstance(each, TrainedGroup)),
        dropped=tuple(each for each in ended if isinstance(each, DroppedGroup)),
    )  # fmt: skip


def test_only_the_surviving_line_decides_and_a_copy_has_an_end_of_its_own():
    ledger = [
        StartEntry(generation=1),
        step(1, trained(0, 1, (0, 10)), dropped(0, 1, (0, 14), "duplicate")),
        step(2, trained(0, 2, (0, 11))),
        StartEntry(generation=2, continues=Position(generation=1, step=1)),
        step(2, dropped(0, 2, (0, 11), "quarantined"), trained(1, 2, (1, 3)), generation=2, version=5),
    ]
    letters = [
        DeadLetter.of("learn", "bad_sha256", "…", (TOPIC, 1, 4), b"x"),
        DeadLetter.of("score", "reward_timeout", "…", ("demo.prompts", 1, 5), b"x"),
    ]
    fates = Fates.of(ledger, letters, TOPIC)
    assert fates.of_group(GroupId(0, 1), (0, 10)) == Fate("trained", 1, 2)
    assert fates.of_group(GroupId(0, 1), (0, 14)) == Fate("dropped", 1, 2, "duplicate")
    assert fates.of_group(GroupId(0, 2), (0, 11)) == Fate("dropped", 2, 5, "quarantined")
    assert fates.of_group(GroupId(1, 2), (1, 3)) == Fate("trained", 2, 5)
    assert fates.of_group(GroupId(7, 7), (1, 4)) == Fate("refused", reason="bad_sha256")
    assert fates.of_group(GroupId(7, 7), (1, 5)) == Fate("waiting")


def table_of(*groups):
    """What a record of these groups holds of what advantages need."""
    value, headers = encode([sample for each in groups for sample in each])
    return decode_columns(value, headers, NEEDED)


def rewarded(partition, offset, *rewards, tokens=3):
    samples = group(partition, offset, size=len(rewards))
    answer = {"response_token_ids": (5,) * tokens, "response_logprobs": (-1.0,) * tokens, "loss_mask": (True,) * tokens}
    return [replace(each, reward=reward, weight_version_spans=((11, 0),), weight_version_max=11, **answer)
            for each, reward in zip(samples, rewards, strict=True)]  # fmt: skip


def config_with(**objective):
    return validate({"name": "demo", "learner": {"objective": objective}}, "test")


@pytest.mark.parametrize(
    "objective",
    [
        {}, {"name": "dr_grpo"}, {"name": "reinforce++"}, {"advantage": "running_baseline"},
        {"length_penalty": 0.5, "length_tokens": 10},
    ],
)  # fmt: skip
def test_advantages_are_those_of_the_steps_in_their_order_whatever_is_read_first(objective):
    config = config_with(**objective)
    first, second = rewarded(0, 1, 1.0, 0.0), rewarded(0, 2, 0.5, None, tokens=7)
    third, spare = rewarded(1, 1, 0.25, 0.75), rewarded(1, 9, 1.0, 1.0)
    line = [step(1, trained(0, 1, (0, 10)), trained(0, 2, (1, 3))), step(2), step(3, trained(1, 1, (0, 11)))]
    again = StepsAgain(config, line)
    for at, groups in (((0, 11), [third]), ((0, 10), [first, spare]), ((1, 3), [second])):
        again.read(table_of(*groups), at)
    learner = Advantages(config.learner.objective, config.length_tokens)
    expected = learner.of_step([first, second])
    learner.learn([first, second])
    expected += learner.of_step([third])
    keys = [(GroupId(0, 1), (0, 10)), (GroupId(0, 2), (1, 3)), (GroupId(1, 1), (0, 11))]
    assert [again.found[key] for key in keys] == expected
    assert set(again.found) == set(keys)


def test_a_value_head_leaves_no_advantages_and_a_group_that_is_gone_ends_them():
    line = [step(1, trained(0, 1, (0, 10))), step(2, trained(0, 2, (0, 11)))]
    one, two = rewarded(0, 1, 1.0, 0.0), rewarded(0, 2, 1.0, 0.0)
    for config, at in ((config_with(name="ppo"), (0, 10)), (config_with(), (0, 99))):
        again = StepsAgain(config, line)
        again.read(table_of(one), at)
        again.read(table_of(two), (0, 11))
        assert again.found == {}
