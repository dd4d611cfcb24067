"""What rank 0 does besides steps."""

from types import SimpleNamespace

import pytest

from schemas.config import RunConfig
from trainers.learn import Learner


class Standing(SimpleNamespace):
    """Between two steps, with weights that engines got or did not get."""

    def __init__(self, *, undelivered=None, fault=None) -> None:
        super().__init__(config=RunConfig(), planner=None, admission=None, announced="v7", version=7, steps_done=6)
        self.weights = SimpleNamespace(undelivered=lambda announced: undelivered, fault=lambda announced: fault)
        self.published, self.committed = [], []

    def publish(self, step, *, as_files=False):
        self.published.append((step, as_files))
        return "v8"

    def frontier(self):
        return "frontier"

    def commit(self, records):
        self.committed.append(records)


@pytest.fixture
def make():
    return lambda **faults: (standing := Standing(**faults), Learner(standing, None, None))


def test_weights_that_no_engine_could_be_sent_go_through_the_store_as_a_new_version(make):
    standing, learner = make(undelivered="version 7 could not be sent")
    learner._deliver_as_files()
    assert standing.published == [(6, True)]
    assert standing.committed == [["v8", "frontier"]]


def test_weights_that_were_delivered_are_left_alone(make):
    standing, learner = make()
    learner._deliver_as_files()
    assert standing.published == []
