"""Cases on a shelf and in its journal: whatever is lost from memory comes back from the state."""

import pickle
import random

from schemas.identity import GroupId
from schemas.joining import FeedbackConfig
from schemas.topics import Topics
from tests.support.feedback import judged
from tests.support.samples import group
from transforms.feedback.case import Rules
from transforms.feedback.items import Awaited, Judged, Source
from transforms.feedback.shelf import Shelf

CONFIG = FeedbackConfig(settle_s=10, wait_s=1000, unknown_after_s=60, correction_s=500)
RULES = Rules(Topics("demo"), CONFIG, lambda text, _: [1])


def awaited(number, at_s):
    return Awaited.of(Source((0, number), number, at_s), group(0, number, 1, reward=None, reward_parts={}))


def thumb(number, at_s, offset, value=1.0):
    given = judged(at_s, value=value, offset=offset)
    feedback = given.feedback.model_copy(update={"rollout_id": f"demo/0/{number}/0"})
    return Judged(given.source, feedback)


class State:
    """What a runner keeps: a bag without an order, and the stamp."""

    def __init__(self):
        self.bag, self.stamp, self.dice = [], "", random.Random(0)

    def keep(self, shelf, changed):
        anew, entries = shelf.journal(changed)
        self.bag = ([] if anew else self.bag) + [pickle.dumps(entry) for entry in entries]
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
    assert shelf.take([thumb(1, 200.0, 7)]) == {GroupId(0, 1)}
    assert shelf.wakes_at() == 210.0
    settled, changed = shelf.settle(210.0, RULES)
    assert ([each.outcome.kind for each in settled], changed) == (["joined"], {GroupId(0, 1)})
    assert shelf.wakes_at() == 710.0


def test_what_changes_nothing_is_not_journalled():
    shelf = Shelf(CONFIG)
    assert shelf.take([awaited(1, 100.0)]) == {GroupId(0, 1)}
    assert shelf.take([awaited(1, 100.0)]) == set()


def test_a_shelf_from_its_journal_goes_on_like_the_one_in_memory():
    dice, state, kept = random.Random(1), State(), Shelf(CONFIG)
    told, told_again, now_s, largest = [], [], 0.0, 0
    for step in range(600):
        now_s += dice.random() * 40
        number = dice.randrange(60)
        items = [awaited(number, now_s)] if dice.random() < 0.4 else [thumb(number, now_s, 10_000 + step)]
        restored = state.restore()
        assert restored.stamp == kept.stamp == state.stamp
        restored.take(items)
        settled, changed = kept.take(items), set()
        found, changed = kept.settle(now_s, RULES)
        again, _ = restored.settle(now_s, RULES)
        told += [each.outcome for each in found]
        told_again += [each.outcome for each in again]
        if settled | changed:
            state.keep(kept, settled | changed)
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
        settled, _ = shelf.settle(int(due_s * 1e6) / 1e6, RULES)
        assert [each.outcome.kind for each in settled] == ["expired"]
        assert shelf.wakes_at() > due_s
