"""Which groups a scorer trains."""

from collections import deque
from dataclasses import replace

import pytest

from schemas.identity import EXCHANGES, FEEDBACK, GroupId
from tests.support.samples import group
from trainers.accounts import Accounts
from trainers.backlog import Backlog, is_held_out
from trainers.planner import Arrival


def arrival(offset, at=None, partition=0):
    return Arrival(GroupId(partition, offset), at or (0, offset), tuple(group(partition, offset)))


def backlog(share=0.0, can_teach=lambda _: True, newest=2, **kept):
    return Backlog("demo", share, can_teach, deque(maxlen=newest), **kept)


def test_held_out_groups_are_a_share_and_always_the_same_ones():
    groups = [GroupId(partition, offset) for partition in range(2) for offset in range(2000)]
    for share in (0.0, 0.1, 0.5):
        chosen = [each for each in groups if is_held_out("demo", each, share)]
        assert len(chosen) == pytest.approx(share * len(groups), abs=0.02 * len(groups))
        assert chosen == [each for each in groups if is_held_out("demo", each, share)]
    fewer = {each for each in groups if is_held_out("demo", each, 0.1)}
    assert fewer < {each for each in groups if is_held_out("demo", each, 0.5)}
    assert fewer != {each for each in groups if is_held_out("other", each, 0.1)}


def test_each_group_is_trained_once_in_the_order_of_arrival():
    waiting = backlog()
    for offset in (5, 3, 5, 4):
        waiting.offer(arrival(offset))
    assert [each.group.offset for each in waiting.take(2)] == [5, 3]
    waiting.offer(arrival(5, at=(1, 9)))
    assert [each.group.offset for each in waiting.take(9)] == [4]
    assert waiting.accounts.count == 3


def test_a_successor_reads_again_what_waited_and_takes_nothing_twice():
    first = backlog()
    for offset in range(4):
        first.offer(arrival(offset))
    first.take(2)
    assert first.positions({0: 4, 1: 7}) == {0: 2, 1: 7}
    second = backlog(accounts=Accounts.restore(first.accounts.dump()))
    for offset in range(1, 6):
        second.offer(arrival(offset))
    assert [each.group.offset for each in second.take(9)] == [2, 3, 4, 5]


def test_the_newest_held_out_groups_stay_and_none_is_trained():
    mine = backlog(share=0.5)
    for offset in range(40):
        mine.offer(arrival(offset))
    held_out = [offset for offset in range(40) if is_held_out("demo", GroupId(0, offset), 0.5)]
    assert [each.group.offset for each in mine.held_out] == held_out[-2:]
    assert not set(held_out) & {each.group.offset for each in mine.take(40)}
    assert mine.accounts.count == 40


def test_what_teaches_nothing_is_passed_over_and_known_from_then_on():
    mine = backlog(can_teach=lambda each: each.rewards != [None, None])
    unknown = arrival(1)
    mine.offer(replace(unknown, samples=tuple(replace(sample, reward=None) for sample in unknown.samples)))
    mine.offer(unknown)
    assert not mine.waiting


@pytest.mark.parametrize(
    ("partition", "purpose", "taken"),
    [(0, "train", 1), (EXCHANGES, "feedback", 1), (FEEDBACK, "correction", 0), (FEEDBACK, "demonstration", 0)],
)
def test_only_rewards_of_answers_say_how_good_one_is(partition, purpose, taken):
    mine = backlog()
    for offset in (3, 9):
        samples = tuple(group(partition, offset, purpose=purpose))
        mine.offer(Arrival(samples[0].group, (0, 0), samples))
    assert len(mine.take(9)) == 2 * taken
    assert len(mine.accounts.contributed) == (0 if partition == 0 else 2)
    assert Accounts.restore(mine.accounts.dump()) == mine.accounts
