"""What rank 0 does besides steps."""

import threading
import time
from types import SimpleNamespace

import pytest
import structlog

from schemas.config import RunConfig
from schemas.identity import EXCHANGES, GroupId
from tests.support.samples import group
from trainers.accounts import Accounts, Versions
from trainers.learn import Learner
from trainers.metrics import Gauges
from trainers.planner import Arrival, Planner
from trainers.trackers import Trackers


class Standing(SimpleNamespace):
    """Between two steps, with weights that engines got or did not get."""

    def __init__(self, *, undelivered=None, fault=None) -> None:
        super().__init__(config=RunConfig(), planner=None, admission=None, announced="v7", version=7, steps_done=6)
        self.weights = SimpleNamespace(undelivered=lambda announced: undelivered, fault=lambda announced: fault)
        self.published, self.committed = [], []

    def settle(self, *, wait=True):
        return True

    def publish(self, step, *, as_files=False):
        self.published.append((step, as_files))
        return "v8"

    def frontier(self):
        return "frontier"

    def commit(self, records):
        self.committed.append(records)


@pytest.fixture
def make():
    return lambda **faults: (standing := Standing(**faults), Learner(standing, Gauges(0), None, Trackers({})))


def test_weights_that_no_engine_could_be_sent_go_through_the_store_as_a_new_version(make):
    standing, learner = make(undelivered="version 7 could not be sent")
    learner._deliver_as_files()
    assert standing.published == [(6, True)]
    assert standing.committed == [["v8", "frontier"]]


def test_weights_that_were_delivered_are_left_alone(make):
    standing, learner = make()
    learner._deliver_as_files()
    assert standing.published == []


def rated(offset):
    """One judgement of one user."""
    (sample,) = group(EXCHANGES, offset, 1, purpose="feedback")
    return Arrival(sample.group, (0, offset), (sample,), frozenset({"ann"}))


class Busy(Standing):
    """Sixteen groups a step are needed, and one user sends groups without end."""

    def __init__(self, share, **faults):
        super().__init__(**faults)
        self.planner = Planner(16, 1, Accounts(), Versions({11: 0, 12: 1}), max_rater_share=share)
        self.admission = SimpleNamespace(admitted=3, advance=lambda target: False)
        self.target, self.sent = 32, 0
        self.intake = SimpleNamespace(letters=[], take=self.planner.offer)
        self.stream = SimpleNamespace(poll=self._poll)

    def _poll(self, timeout_s):
        time.sleep(0.01)
        self.sent += 1
        return [rated(self.sent)]


def test_learner_says_that_it_waits_for_other_raters_also_while_groups_of_this_one_come(monkeypatch):
    monkeypatch.setattr("trainers.learn._PATIENCE_S", 0.2)
    stop, standing = threading.Event(), Busy(share=0.25)
    threading.Timer(1.5, stop.set).start()
    with structlog.testing.capture_logs() as logs:
        assert Learner(standing, Gauges(0), stop, Trackers({}))._wait_for_plan() is None
    told = [entry for entry in logs if entry["event"] == "waiting for groups"]
    assert told
    assert all(entry["over_share"] == entry["have"] - 4 > 0 for entry in told)


def test_parked_prompts_and_groups_that_are_none_leave_no_weights_to_be_looked_at():
    standing = Busy(share=1.0, fault="rotten")
    accounts = standing.planner.accounts
    for offset in (0, 1):
        accounts.park(GroupId(0, offset))
    for offset in range(5):
        standing.planner.offer(rated(offset))
    learner = Learner(standing, Gauges(0), threading.Event(), Trackers({}))
    learner._look_for_fault()
    assert standing.published == [(6, True)], "the third admitted prompt is unanswered"
    accounts.finish(GroupId(0, 2))
    learner._look_for_fault()
    assert len(standing.published) == 1


def test_a_group_of_weights_that_were_announced_a_moment_ago_is_judged_after_that_was_noted():
    standing = Busy(share=1.0)
    standing.planner.versions.steps.clear()
    settled = []

    def settle(*, wait=True):
        if wait:
            settled.append(dict(standing.planner.waiting))
            standing.planner.versions.steps |= {11: 0, 12: 1}
        return wait

    standing.settle = settle
    learner = Learner(standing, Gauges(0), threading.Event(), Trackers({}))
    learner._listen()
    assert settled == [{}], "settled once, before the group was judged"
    assert len(standing.planner.waiting) == 1
    learner._listen()
    assert len(settled) == 1


def test_nothing_is_admitted_while_a_step_is_on_its_way():
    standing, stop, asked = Busy(share=1.0), threading.Event(), []
    standing.admission = SimpleNamespace(admitted=3, advance=asked.append)
    standing.settle = lambda *, wait=True: bool(standing.sent > 4)
    threading.Timer(0.5, stop.set).start()
    assert Learner(standing, Gauges(0), stop, Trackers({}))._wait_for_plan() is not None
    assert len(asked) == 16 - 4
