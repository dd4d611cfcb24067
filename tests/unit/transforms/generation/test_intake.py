"""Which prompts are taken, in which order, and what counts as finished without a prompt."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from kafka import TopicPartition

from schemas.admission import AdmissionFrontier
from schemas.offsets import OffsetSet
from transforms.generation.frontier import Frontier
from transforms.generation.intake import Intake


class Log:
    """A consumer over literal offsets."""

    def __init__(self, **offsets):
        self._offsets = {int(name[1:]): found for name, found in offsets.items()}
        self._positions = {}
        self._assigned = set()

    def assignment(self):
        return set(self._assigned)

    def assign(self, partitions):
        self._assigned = set(partitions)

    def seek(self, partition, offset):
        self._positions[partition.partition] = offset

    def poll(self, timeout_ms, max_records):
        polled = {}
        for topic_partition in self._assigned:
            p = topic_partition.partition
            found = [offset for offset in self._offsets[p] if offset >= self._positions[p]][:max_records]
            if found:
                self._positions[p] = found[-1] + 1
                polled[topic_partition] = [
                    SimpleNamespace(partition=p, offset=offset, value=b"%d" % offset, timestamp=1_000)
                    for offset in found
                ]
        return polled


def frontier(*records):
    built = Frontier()
    for version, ends in records:
        built.apply(AdmissionFrontier(version=version, generation=1, frontier=ends))
    return built


def ids(admitted):
    return [tuple(prompt.record.id) for prompt in admitted]


def test_partitions_take_turns_below_the_frontier():
    intake = Intake(
        Log(p0=range(4), p1=range(4)), "t", {0: OffsetSet(), 1: OffsetSet()}, frontier((1, {0: 3, 1: 1})), 8
    )
    intake.poll(0)
    assert ids(intake.take(8)) == [(0, 0), (1, 0), (0, 1), (0, 2)]
    assert intake.waiting == 4


def test_room_bounds_what_is_taken_and_nothing_is_taken_twice():
    intake = Intake(Log(p0=range(5)), "t", {0: OffsetSet()}, frontier((1, {0: 5})), 8)
    intake.poll(0)
    assert ids(intake.take(2)) == [(0, 0), (0, 1)]
    assert ids(intake.take(9)) == [(0, 2), (0, 3), (0, 4)]
    assert ids(intake.take(9)) == []


def test_what_was_finished_before_the_start_is_left_out():
    intake = Intake(Log(p0=range(6)), "t", {0: OffsetSet(1, {2, 4})}, frontier((1, {0: 6})), 8)
    intake.poll(0)
    assert ids(intake.take(9)) == [(0, 1), (0, 3), (0, 5)]
    assert intake.gaps(0) == []


def test_offsets_without_a_prompt_are_gaps_once():
    intake = Intake(Log(p0=[2, 3, 6]), "t", {0: OffsetSet(1)}, frontier((1, {0: 9})), 8)
    intake.poll(0)
    assert intake.gaps(0) == [1, 4, 5]
    assert intake.gaps(0) == []


def test_a_full_partition_does_not_keep_the_other_from_its_turn():
    log = Log(p0=range(100), p1=range(50))
    intake = Intake(log, "t", {0: OffsetSet(), 1: OffsetSet()}, frontier((1, {0: 0, 1: 50})), 4)
    taken = []
    for _ in range(20):
        intake.poll(0)
        taken += ids(intake.take(4))
    assert taken == [(1, offset) for offset in range(50)]
    assert intake.waiting == 4, "partition 0 is read no further than its buffer"
    assert log.assignment() == {TopicPartition("t", 1)}


def test_a_partition_that_was_full_is_taken_up_where_it_stopped():
    moving = frontier((1, {0: 2}))
    intake = Intake(Log(p0=range(20)), "t", {0: OffsetSet()}, moving, 4)
    taken = []
    for end in (2, 2, 2, 20, 20, 20, 20, 20, 20):
        moving.apply(AdmissionFrontier(version=2, generation=1, frontier={0: end}))
        intake.poll(0)
        taken += ids(intake.take(4))
    assert taken == [(0, offset) for offset in range(20)]


def test_a_prompt_asks_for_the_version_that_first_admitted_it():
    admitted = frontier((1, {0: 2}), (3, {0: 2, 1: 4}), (4, {0: 5}))
    assert [admitted.min_version(0, offset) for offset in range(5)] == [1, 1, 4, 4, 4]
    assert admitted.min_version(1, 0) == 3
    with pytest.raises(LookupError, match="0/5 is not admitted"):
        admitted.min_version(0, 5)


def test_the_frontier_never_goes_back():
    admitted = frontier((1, {0: 8}), (2, {0: 4}))
    assert admitted.end(0) == 8
    assert admitted.min_version(0, 5) == 1


def test_a_partition_that_no_record_names_is_not_admitted():
    assert frontier((1, {0: 8})).end(1) == 0


def test_the_prompt_keeps_kafkas_time():
    intake = Intake(Log(p0=[0]), "t", {0: OffsetSet()}, frontier((1, {0: 1})), 4)
    intake.poll(0)
    assert intake.take(1)[0].record.written_at == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
