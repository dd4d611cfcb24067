"""Cases on a shelf and in its journal: whatever is lost from memory comes back from the state."""

import pickle
import random

from schemas.identity import GroupId
from schemas.joining import FeedbackConfig
from schemas.topics import Topics
from tests.support.feedback import judged
from tests.support.samples import group
from transforms.feedback import shelf as module
from transforms.feedback.case import Rules
from transforms.feedback.items import Awaited, Judged, Source
from transforms.feedback.shelf import Shelf, pack

CONFIG = FeedbackConfig(settle_s=10, wait_s=1000, unknown_after_s=60, correction_s=500)
RULES = Rules(Topics("demo"), CONFIG, lambda text, _: [1])


def awaited(number, at_s, offset=None):
    offset = number if offset is None else offset
    return Awaited.of(Source((0, offset), offset, at_s), group(0, number, 1, reward=None, reward_parts={}))


def thumb(number, at_s, offset, value=1.0):
    given = judged(at_s, value=value, offset=offset)
    feedback = given.feedback.model_copy(update={"rollout_id": f"demo/0/{number}/0"})
    return Judged(given.source, feedback)


def moment_of(item):
    return item.source.appended_s


class State:
    """What a runner keeps: a bag without an order, and the stamp."""

    def __init__(self):
        self.bag, self.stamp, self.dice = [], "", random.Random(0)

    def take(self, shelf, items):
        shelf.take(items)
        self._add(shelf, [shelf.journal_of(pack(tuple(items)), len(items))])

    def keep(self, shelf, changed):
        anew, entries = shelf.journal(changed)
        self.bag = [] if anew else self.bag
        self._add(shelf, entries)

    def _add(self, shelf, entries):
        self.bag += [pickle.dumps(entry) for entry in entries]
        self.stamp = shelf.stamp

    def restore(self):
        bag = [pickle.loads(entry) for entry in self.bag]
        self.dice.shuffle(bag)
        return Shelf.restored(CONFIG, bag)


def test_a_shelf_wakes_for_the_case_that_is_due_first():
    shelf = Shelf(CONFIG)
    assert shelf.wakes_at() == float("inf")
    shelf.take([awaited(1, 100.0), awaited(2, 50.0)])
    assert shelf.wakes_at() == 1050.0
    shelf.take([thumb(1, 200.0, 7)])
    assert shelf.wakes_at() == 210.0
    settled, changed = shelf.settle(210.0, RULES, 10)
    assert ([each.outcome.kind for each in settled], changed) == (["joined"], {GroupId(0, 1)})
    assert shelf.wakes_at() == 710.0


def test_no_more_is_decided_at_once_than_is_asked_for():
    shelf = Shelf(CONFIG)
    shelf.take([awaited(number, 100.0) for number in range(5)])
    assert [len(shelf.settle(5000.0, RULES, 2)[0]) for _ in range(6)] == [2, 2, 2, 2, 2, 0]
    assert not shelf.cases


def test_when_and_how_often_a_shelf_is_settled_changes_nothing():
    """As of every moment, or all at the end: the same outcomes, each with its own moment."""
    dice, now_s, items = random.Random(3), 0.0, []
    for step in range(400):
        now_s += dice.random() * 40
        number = dice.randrange(40)
        items.append(awaited(number, now_s, step) if dice.random() < 0.3 else thumb(number, now_s, 10_000 + step))
    told = []
    for pause in (1, 7, 400):
        shelf, found = Shelf(CONFIG), []
        for at, item in enumerate(items, start=1):
            while shelf.wakes_at() < moment_of(item) and at % pause == 0:
                found += shelf.settle(shelf.wakes_at(), RULES, 1)[0]
            shelf.take([item])
        while shelf.cases:
            found += shelf.settle(1e6, RULES, 100)[0]
        told.append(sorted(each.outcome.model_dump_json() for each in found if each.outcome))
    assert told[0] == told[1] == told[2]


def test_a_shelf_from_its_journal_goes_on_like_the_one_in_memory(monkeypatch):
    monkeypatch.setattr(module, "_SLACK_PARTS", 32)
    dice, state, kept, restored = random.Random(1), State(), Shelf(CONFIG), Shelf(CONFIG)
    told, told_again, now_s, largest = [], [], 0.0, 0
    for step in range(600):
        now_s += dice.random() * 40
        number = dice.randrange(60)
        items = [awaited(number, now_s)] if dice.random() < 0.4 else [thumb(number, now_s, 10_000 + step)]
        restored = state.restore() if step % 3 == 0 else restored
        assert restored.stamp == kept.stamp == state.stamp or step % 3
        restored.take(items)
        state.take(kept, items)
        found, changed = kept.settle(now_s, RULES, 100)
        again, _ = restored.settle(now_s, RULES, 100)
        told += [each.outcome for each in found]
        told_again += [each.outcome for each in again]
        if changed:
            state.keep(kept, changed)
        largest = max(largest, len(state.bag))
    assert told == told_again
    assert {outcome.kind for outcome in told if outcome} == {"joined", "expired", "corrected", "refused"}
    assert largest < 500, "the journal is written anew now and then"
    assert state.restore().cases == kept.cases


def test_a_timer_that_rounds_the_moment_down_still_finds_what_is_due():
    """At today's seconds a float has a quarter of a microsecond, and a timer whole ones."""
    dice = random.Random(2)
    for _ in range(2000):
        shelf, at_s = Shelf(CONFIG), 1.7e9 + dice.random() * 1e6
        shelf.take([awaited(1, at_s)])
        due_s = shelf.wakes_at()
        settled, _ = shelf.settle(int(due_s * 1e6) / 1e6, RULES, 1)
        assert [each.outcome.kind for each in settled] == ["expired"]
        assert shelf.wakes_at() > due_s
