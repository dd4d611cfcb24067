"""Admission over real records with gaps, on a consumer that is a dictionary."""

from collections import namedtuple

import pytest
from kafka import TopicPartition

from trainers.accounts import Accounts
from trainers.admission import Admission

Record = namedtuple("Record", "partition offset")


class Prompts:
    """As much of a KafkaConsumer as the admission uses."""

    def __init__(self, offsets):
        self.offsets = {TopicPartition("t", number): list(values) for number, values in offsets.items()}
        self.where, self.assigned, self.most = {}, [], 3

    def assign(self, partitions):
        self.assigned = list(partitions)

    def assignment(self):
        return set(self.assigned)

    def seek(self, partition, offset):
        self.where[partition] = offset

    def beginning_offsets(self, partitions):
        return {p: self.offsets[p][0] if self.offsets[p] else 0 for p in partitions}

    def end_offsets(self, partitions):
        return {p: self.offsets[p][-1] + 2 if self.offsets[p] else 0 for p in partitions}  # a marker is last

    def position(self, partition):
        return self.where[partition]

    def poll(self, timeout_ms=0, max_records=None):
        """Records of the first partition that has some, as Kafka's consumer does when they are many."""
        found = {}
        for partition in self.assigned:
            offsets = [o for o in self.offsets[partition] if o >= self.where[partition]][: self.most]
            if offsets and not found:
                found[partition] = [Record(partition.partition, offset) for offset in offsets]
                self.where[partition] = offsets[-1] + 1
            elif not offsets:
                self.where[partition] = self.end_offsets([partition])[partition]
        return found


@pytest.fixture
def accounts():
    return Accounts()


def admission(accounts, offsets, counted=None, admitted=0, newest=None):
    consumer = Prompts(offsets)
    walker = Admission(consumer, list(consumer.offsets), accounts.skip)
    walker.recount(counted or {}, admitted, newest or {})
    return walker


def test_prompts_are_taken_in_turn_and_gaps_are_walked_over(accounts):
    walker = admission(accounts, {0: [0, 2, 4, 6, 8], 1: [1, 2, 3]})
    assert walker.advance(4)
    assert walker.frontier == {0: 3, 1: 3}
    assert walker.admitted == 4
    assert accounts.count == 0
    assert 1 in accounts.finished[0]  # the marker
    assert 2 not in accounts.finished[0]


def test_partition_without_prompts_leaves_its_share_to_the_others(accounts):
    walker = admission(accounts, {0: [0], 1: list(range(10)), 2: []})
    walker.advance(6)
    assert (walker.frontier, walker.admitted) == ({0: 1, 1: 5, 2: 0}, 6)


def test_full_queue_gives_way_to_the_others_and_everything_is_admitted(accounts):
    walker = admission(accounts, {0: list(range(2000)), 1: list(range(900)), 2: []})
    walker._consumer.most = 500
    assert walker.advance(100)
    assert walker.frontier == {0: 50, 1: 50, 2: 0}
    while walker.advance(walker.admitted + 100):
        assert sum(map(len, walker._queues.values())) <= 2 * (256 + 500)
    assert (walker.frontier, walker.admitted) == ({0: 2000, 1: 900, 2: 0}, 2900)


def test_nothing_waits_nothing_moves(accounts):
    walker = admission(accounts, {0: [0]})
    assert walker.advance(5)
    assert not walker.advance(5)
    assert (walker.frontier, walker.admitted) == ({0: 1}, 1)


def test_frontier_never_goes_back_and_is_counted_from_the_checkpoint_on(accounts):
    walker = admission(accounts, {0: [0, 2, 4, 6, 8]}, counted={0: 3}, admitted=2, newest={0: 7})
    assert (walker.frontier, walker.admitted) == ({0: 7}, 4)
    assert not walker.advance(3)
    assert walker.frontier == {0: 7}
    assert walker.advance(5)
    assert walker.frontier == {0: 9}


def test_fresh_learner_counts_the_whole_log(accounts):
    walker = admission(accounts, {0: [5, 6, 8], 1: [0]}, newest={0: 7, 1: 1})
    assert (walker.frontier, walker.admitted) == ({0: 7, 1: 1}, 3)
    assert accounts.finished[0].low == 5  # beyond retention
