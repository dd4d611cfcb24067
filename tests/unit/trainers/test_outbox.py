"""One thread writes what steps came to, in order; the training thread takes note."""

import threading
from contextlib import closing

import pytest

from trainers.outbox import Outbox


@pytest.fixture
def outbox():
    with closing(Outbox()) as made:
        yield made


class Held:
    """A job that goes on until it is let go."""

    def __init__(self, returns):
        self.let_go, self._returns = threading.Event(), returns

    def __call__(self):
        assert self.let_go.wait(60)
        return self._returns


def test_job_runs_beside_and_is_noted_by_whoever_settles(outbox):
    job, noted = Held("v2"), []
    outbox.put(job, lambda got: noted.append((got, threading.current_thread())))
    assert outbox.is_busy
    assert not outbox.settle(wait=False)
    assert noted == []
    job.let_go.set()
    assert outbox.settle()
    assert noted == [("v2", threading.current_thread())]
    assert not outbox.is_busy


def test_next_job_and_every_other_commit_wait_for_the_one_before(outbox):
    order, first = [], Held(1)
    outbox.put(first, order.append)
    threading.Timer(0.1, first.let_go.set).start()
    assert outbox.run(lambda: order.append("run") or "done") == "done"
    outbox.put(lambda: 2, order.append)
    outbox.put(lambda: 3, order.append)
    outbox.settle()
    assert order == [1, "run", 2, 3]


def test_what_a_job_raises_reaches_the_training_thread_once_and_nothing_is_noted(outbox):
    noted = []
    outbox.put(lambda: 1 / 0, noted.append)
    with pytest.raises(ZeroDivisionError):
        outbox.settle()
    assert outbox.settle()
    assert noted == []


def test_chores_are_done_in_turn_and_their_faults_told_later(outbox):
    done = []
    outbox.chore(lambda: done.append(1))
    outbox.chore(lambda: 1 / 0)
    outbox.run(lambda: None)
    with pytest.raises(ZeroDivisionError):
        outbox.chore(lambda: done.append(2))
    outbox.run(lambda: None)
    assert done == [1, 2]


def test_closing_waits_for_what_was_put():
    outbox, done = Outbox(), []
    held = Held(None)
    outbox.put(held, lambda _: None)
    outbox.chore(lambda: done.append("tidied"))
    threading.Timer(0.1, held.let_go.set).start()
    outbox.close()
    assert done == ["tidied"]
