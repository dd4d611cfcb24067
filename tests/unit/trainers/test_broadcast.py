"""The transport ``nccl`` between CPUs (gloo): a learner, engines that come, go and die, and no hang."""

import threading
import time

import pytest
import torch

from schemas.broadcasts import TICKETS, Ask, ask_key
from schemas.config import WeightsConfig
from schemas.errors import PortError
from trainers.broadcast import Broadcaster
from trainers.snapshots import Snapshots
from transforms.generation.worker.staging import Staging

TIMEOUT_S = 1.5


def weights(value):
    return {"a": torch.full((5, 3), float(value)).bfloat16(), "b": torch.arange(7.0) * value}


class Sender:
    """A learner's end, with the version that it offers."""

    def __init__(self) -> None:
        self.broadcaster = Broadcaster(WeightsConfig(transport="nccl", timeout_s=TIMEOUT_S))
        self._snapshots = Snapshots(2)

    def offer(self, version):
        snapshot = self._snapshots.take(weights(version), version)
        source = self.broadcaster.offer(snapshot)
        return source.model_dump_json(), snapshot.layout.model_dump_json()

    def fault(self, version, **options):
        return self.broadcaster.fault(version, **{"even_unasked": False} | options)


@pytest.fixture
def sender():
    made = Sender()
    yield made
    made.broadcaster.close()


def engine():
    return Staging(torch.device("cpu"))


def receive(texts, *engines):
    """What each engine says once it is done."""
    for each in engines:
        each.begin(*texts)
    deadline = time.monotonic() + 3 * TIMEOUT_S
    while None in (outcomes := [each.outcome() for each in engines]):
        assert time.monotonic() < deadline, "an engine hangs"
        time.sleep(0.01)
    return outcomes


def holds(staging, version):
    return all(torch.equal(tensor, weights(version)[name]) for name, tensor in staging.tensors().items())


def test_engines_receive_every_version_whoever_is_there(sender):
    first, second, third = engine(), engine(), engine()
    assert receive(sender.offer(1), first, second) == ["", ""]
    assert holds(first, 1)
    assert holds(second, 1)
    assert receive(sender.offer(2), first, second) == ["", ""], "the group of the last round"
    assert receive(sender.offer(3), second, third) == ["", ""], "one left, one came"
    assert holds(second, 3)
    assert holds(third, 3)
    assert [sender.fault(version, even_unasked=True) for version in (1, 2, 3)] == [None] * 3


def test_an_engine_that_comes_late_gets_a_round_of_its_own(sender):
    texts = sender.offer(1)
    assert receive(texts, engine()) == [""]
    assert receive(texts, late := engine()) == [""]
    assert holds(late, 1)


def test_a_version_that_is_gone_is_refused_and_the_newest_is_not(sender):
    old, newest = sender.offer(1), sender.offer(2)
    late = engine()
    (outcome,) = receive(old, late)
    assert outcome.startswith("vanished: version 1 of")
    assert receive(newest, late) == [""]


@pytest.mark.timed
def test_an_engine_that_dies_costs_its_round_and_the_next_one_is_whole(sender):
    texts = sender.offer(1)
    survivor = engine()
    dead = threading.Thread(target=ask_and_die, args=(sender, 1))
    dead.start()
    started = time.monotonic()
    (outcome,) = receive(texts, survivor)
    dead.join()
    assert outcome.startswith("unreadable: ")
    assert time.monotonic() - started < 2.5 * TIMEOUT_S
    while sender.fault(1) is None:
        assert time.monotonic() - started < 3 * TIMEOUT_S, "the learner does not notice"
        time.sleep(0.01)
    assert "could not be sent to 2 engines" in sender.fault(1)
    assert receive(sender.offer(2), survivor) == [""]
    assert holds(survivor, 2)


def ask_and_die(sender, version):
    """A ticket, an ask, and nothing more."""
    store = sender.broadcaster._store
    ticket = store.add(TICKETS, 1)
    size = sender._snapshots.of(version).layout.size
    store.set(ask_key(ticket), Ask(member="f" * 32, version=version, size=size).model_dump_json())


def test_rubbish_in_the_rendezvous_is_passed_over(sender):
    texts = sender.offer(1)
    store = sender.broadcaster._store
    store.set(ask_key(store.add(TICKETS, 1)), b'{"member": "../../x"}')
    assert receive(texts, engine()) == [""]


def test_a_learner_that_is_gone_is_an_answer_and_no_hang():
    sender = Sender()
    texts = sender.offer(1)
    port = sender.broadcaster._port
    sender.broadcaster.close()
    del sender.broadcaster._store
    (outcome,) = receive(texts, engine())
    assert outcome.startswith(f"unreadable: 127.0.0.1:{port}")


def test_versions_that_nobody_asked_for_are_a_fault_only_for_those_who_wait(sender):
    sender.offer(1)
    assert sender.fault(1) is None
    assert "no engine has asked for version 1" in sender.fault(1, even_unasked=True)
    assert sender.fault(2, even_unasked=True) is None, "it was never offered"


def test_a_port_that_is_taken_is_the_users_to_mend(sender):
    sender.offer(1)
    other = Broadcaster(WeightsConfig(transport="nccl", port=sender.broadcaster._port))
    with pytest.raises(PortError, match=r"weights\.port"):
        other.offer(Snapshots(1).take(weights(1), 1))
    other.close()
