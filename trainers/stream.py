"""From Kafka to events: whole groups, unusable records and dead letters of other stages.

    trajectories ──► schemas.trajectories.decode ──► Arrival (one a group) or Fault (one a record)
    pending      ──► headers ──► Parked (one a record): who waits for feedback
    dead-letters ──► Letter (one a prompt that another stage gave up)

Offsets come from the checkpoint; a lost range is an error and never jumped over.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import structlog
from kafka import TopicPartition

from schemas import traces
from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import RecordError, StateError
from schemas.identity import GroupId
from schemas.ledger import StepEntry, TrainedGroup
from schemas.trajectories import decode, groups_named_in, raters_named_in
from trainers.accounts import Place
from trainers.log import assign, open_consumer, partitions_of, read_record, read_to_end
from trainers.planner import Arrival

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """A trajectories record that cannot be used."""

    at: Place
    groups: tuple[GroupId, ...]
    """Those that its headers name, if they can be read."""
    reason: str
    detail: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Letter:
    """A record of the dead-letters topic."""

    letter: DeadLetter


@dataclass(frozen=True, slots=True)
class Parked:
    """A record of the pending topic; its value is not looked at."""

    groups: tuple[GroupId, ...]
    """Those that its headers name."""


Event = Arrival | Fault | Letter | Parked


class Stream:
    """The learner's view of the trajectories, pending and dead-letters topics.

    Args:
        config: of the run.
        positions: the next offset of each trajectories partition; of those that it lacks the first one.
        letters_from: the next offset of the dead-letters topic; null for the first.
        pending: as ``positions``, of the pending topic; null where nobody wants to know who is parked.

    Attributes:
        groups: those that are known by their places.
    """

    def __init__(
        self,
        config: RunConfig,
        positions: dict[int, int] | None,
        letters_from: int | None,
        pending: dict[int, int] | None = None,
    ) -> None:
        self._consumer, self._topics = open_consumer(config), config.topics
        self.groups = Groups(config)
        starts = self._starts(self._topics.trajectories, positions or {})
        if pending is not None:
            starts |= self._starts(self._topics.pending, pending)
        self._letters = partitions_of(self._consumer, config.topics.dead_letters)[0]
        self._early = _read_early(config, self._letters, letters_from)
        after = self._early[-1].offset + 1 if self._early else letters_from  # not where a poll happened to end
        assign(self._consumer, {**starts, self._letters: after})

    def _starts(self, topic: str, positions: dict[int, int]) -> dict[TopicPartition, int | None]:
        return {each: positions.get(each.partition) for each in partitions_of(self._consumer, topic)}

    def letters_so_far(self) -> list[Letter]:
        """The dead letters that were there when the stream was opened: known before the first group."""
        return [letter for record in self._early for letter in _read_letter(record)]

    def poll(self, timeout_s: float) -> Iterator[Event]:
        """What has come, after a wait of at most ``timeout_s`` if nothing has."""
        for partition, records in self._consumer.poll(timeout_ms=int(timeout_s * 1000)).items():
            for record in records:
                yield from self._read(partition.topic, record)

    def _read(self, topic: str, record: Any) -> Iterator[Event]:
        if topic == self._topics.trajectories:
            yield from read_trajectories(record)
        elif topic == self._topics.pending:
            yield Parked(tuple(groups_named_in(dict(record.headers))))
        else:
            yield from _read_letter(record)

    def ends(self) -> dict[int, int]:
        """The offset after the last record of each trajectories partition, as it is now."""
        ends = self._consumer.end_offsets(self._assigned(self._topics.trajectories))
        return {partition.partition: end for partition, end in ends.items()}

    def positions(self) -> dict[int, int]:
        """The next offset of each trajectories partition."""
        return {p.partition: self._consumer.position(p) for p in self._assigned(self._topics.trajectories)}

    def pending_positions(self) -> dict[int, int]:
        """The next offset of each pending partition."""
        return {p.partition: self._consumer.position(p) for p in self._assigned(self._topics.pending)}

    def _assigned(self, topic: str) -> list[TopicPartition]:
        return [partition for partition in self._consumer.assignment() if partition.topic == topic]

    def letters_position(self) -> int:
        """The next offset of the dead-letters topic."""
        return int(self._consumer.position(self._letters))

    def close(self) -> None:
        """Closes the connections."""
        self._consumer.close()
        self.groups.close()


class Groups:
    """Groups of the trajectories topic by their places."""

    def __init__(self, config: RunConfig) -> None:
        self._topic = config.topics.trajectories
        self._consumer = open_consumer(config)

    def fetch(self, entry: StepEntry) -> list[Arrival]:
        """The groups that a step of the ledger trained, read again from where they lie.

        Raises:
            StateError: one of them is not there any more.
        """
        return [self.find(trained) for trained in entry.trained]

    def find(self, trained: TrainedGroup) -> Arrival:
        """One group, read again from where it lies.

        Raises:
            StateError: it is not there any more.
        """
        record = read_record(self._consumer, TopicPartition(self._topic, trained.at[0]), trained.at[1])
        for event in read_trajectories(record):
            if isinstance(event, Arrival) and event.trained() == trained:
                return event
        raise StateError(f"group {trained.group} is not at {trained.at} of {self._topic}, as the ledger says")

    def close(self) -> None:
        """Closes the connection."""
        self._consumer.close()


def read_trajectories(record: Any) -> Iterator[Arrival | Fault]:
    """The groups of one record, or what is wrong with it."""
    at = (record.partition, record.offset)
    headers = dict(record.headers)
    try:
        groups = decode(record.value, headers)
    except RecordError as error:
        _log.error("bad trajectories record", partition=at[0], offset=at[1], reason=error.reason, detail=error.detail)
        yield Fault(at, tuple(groups_named_in(headers)), error.reason, error.detail, record.value or b"")
        return
    raters, contexts, now_s = raters_named_in(headers), traces.groups_in(record), time.time()
    for samples in groups:
        ordered = tuple(sorted(samples, key=lambda sample: sample.sample_index))
        group = ordered[0].group
        yield Arrival(group, at, ordered, raters.get(group, frozenset()), contexts.get(group), now_s)


def _read_early(config: RunConfig, letters: TopicPartition, start: int | None) -> list[Any]:
    """The records so far, by a consumer of its own: kafka-python forgets the leaders of what is not assigned."""
    consumer = open_consumer(config)
    try:
        return list(read_to_end(consumer, {letters: start}))
    finally:
        consumer.close()


def _read_letter(record: Any) -> Iterator[Letter]:
    try:
        yield Letter(DeadLetter.decode(record.value or b""))
    except RecordError as error:
        _log.error("bad dead letter passed over", offset=record.offset, detail=str(error))
