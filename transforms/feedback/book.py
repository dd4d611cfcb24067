"""The memory of the feedback pipeline: the outcomes topic, read at the start and written with everything it decides.

    Settled … ──► commit ──► one Kafka transaction: trajectories + dead letters + outcomes + offsets
                                                                                     │
    start: fence ──► offsets, outcomes ──► what has a fate, what was decided ◄───────┘

Beam's state holds only what the topics can tell again, so a pipeline that is started anew, with nothing in its state,
goes on where the last one was. A record of pending or feedback is *done* when it need not be read again; offsets
are committed up to the first that is not. There is one book in a process, however many readers and writers Beam builds.

This module must be imported, never run as ``__main__``: Beam pickles ``__main__`` by value.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any, Final

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from schemas import traces, trajectories
from schemas.config import RunConfig
from schemas.crash_points import crash_point
from schemas.dead_letters import DeadLetter
from schemas.errors import BrokerError, RecordError, StateError
from schemas.identity import GroupId
from schemas.offsets import OffsetSet
from schemas.outcomes import FeedbackFate, Outcome
from schemas.transactions import open_producer, transaction
from transforms.feedback import metrics
from transforms.feedback.items import Closed, Contribution, Joining, Place, Refused, Settled, Source

_LOG = structlog.get_logger(__name__)
_POLL_MS: Final = 200
_NONE: Final = OffsetSet()
_BEYOND_AGE_S: Final = 1.0
_BACK_MS: Final = 60_000
"""How far the clock of a partition may go back, as when another broker leads it."""
_Told = tuple[Outcome, int]
"""And the timestamp of its record, see :func:`_told_ms`."""
_Record = tuple[str, bytes, bytes, list[tuple[str, bytes]], int | None]
"""Topic, key, value, headers, and the timestamp in milliseconds since 1970, null for now."""
_MOST_REFUSALS: Final = 500
"""In one outcome: below the megabyte that brokers take by default, however long the names that their senders gave."""
_SWEEP_FATES: Final = 10_000
"""Fates that are remembered by themselves before those are forgotten that the offsets tell."""


class Book:
    """What was decided, and what is done with. Opening one fences every older feedback pipeline of the run.

    Args:
        config: of the run.

    Raises:
        BrokerError: Kafka cannot be reached, or a topic is missing.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config, self._topics = config, config.topics
        self._lock = threading.Lock()
        self._producer = open_producer(config.kafka, self._topics.join_id)
        self._done = _read_offsets(config)
        self._closed: dict[Place, set[GroupId]] = {}
        self._decided: dict[GroupId, Outcome] = {}
        self._fates: set[Place] = set()
        self._limited: set[Place] = set()
        self._sweep_at = _SWEEP_FATES
        self._written: dict[TopicPartition, tuple[int, str, float]] = {}
        for outcome in _read_outcomes(config, self._done):
            self._note(outcome)
            self._limited.update(fate.at for fate in outcome.feedback if fate.fate == "rate_limited")

    # ---- what has happened -------------------------------------------------------------------------------

    def starts(self) -> dict[TopicPartition, int]:
        """Where each partition of pending and feedback has to be read from."""
        return {TopicPartition(topic, at): done.low for topic, of in self._done.items() for at, done in of.items()}

    def has_fate(self, place: Place) -> bool:
        """Whether a feedback record was dealt with."""
        return place in self._fates or place[1] in self._done[self._topics.feedback].get(place[0], _NONE)

    def was_limited(self, place: Place) -> bool:
        """Whether a feedback record was refused for its user's rate, before the pipeline was started."""
        return place in self._limited

    def is_closed(self, place: Place) -> bool:
        """Whether a pending record is done with: all its groups are."""
        return place[1] in self._done[self._topics.pending].get(place[0], _NONE)

    def decision_of(self, group: GroupId, place: Place) -> Outcome | None:
        """The newest decision about a group whose pending record is not closed; null if it is about another record."""
        found = self._decided.get(group)
        return found if found is not None and place in found.pending else None

    def _note(self, outcome: Outcome) -> None:
        self._fates.update(fate.at for fate in outcome.feedback)
        if outcome.group is not None and outcome.kind != "refused":
            self._decided[outcome.group] = outcome

    def _is_known(self, settled: Settled) -> bool:
        """Whether a decision was committed before: a bundle that Beam tries again.

        Raises:
            StateError: a part of it was, by a pipeline that knew more.
        """
        outcome = settled.outcome
        if outcome is None or outcome.group is None:
            return False
        known = [self.has_fate(fate.at) for fate in outcome.feedback]
        if outcome.kind in ("joined", "expired") and not known:
            known = [outcome.group in self._decided or self._was_closed(outcome)]
        if any(known) and not all(known):
            raise StateError(f"decisions about group {outcome.group} differ from the topics; start anew to read them")
        return all(known)

    def _was_closed(self, outcome: Outcome) -> bool:
        """Whether the group was decided and closed since, so that its decision is forgotten."""
        return bool(outcome.pending) and all(
            self.is_closed(place) or outcome.group in self._closed.get(place, ()) for place in outcome.pending
        )

    def _only_new(self, settled: Settled) -> Settled:
        """Without refusals that were committed before: a reader that was set back has read them again."""
        if not settled.refused and not settled.letters:
            return settled
        fresh = tuple(each for each in settled.refused if not self.has_fate(each.source.place))
        return replace(settled, refused=fresh, letters=tuple(each for each in settled.letters if self._is_new(each)))

    def _is_new(self, letter: DeadLetter) -> bool:
        return letter.topic != self._topics.pending or not self.is_closed((letter.partition, letter.offset))

    # ---- what happens ------------------------------------------------------------------------------------

    def commit(self, settled: Sequence[Settled]) -> None:
        """Writes decisions and the offsets that they finish in one transaction.

        Raises:
            FencedError: a newer pipeline has taken over.
            KafkaError, BrokerError: it failed; the process has to end, the next one finds out what is committed.
            StateError: see :meth:`_is_known`.
        """
        with self._lock:
            started = time.monotonic()
            fresh = [self._only_new(each) for each in settled if not self._is_known(each)]
            moved = self._offsets_after(fresh)
            told = [(outcome, _told_ms(outcome, each.judged)) for each in fresh if (outcome := each.outcome)]
            told += [(each, _told_ms(each)) for each in _refusals(each for of in fresh for each in of.refused)]
            if not moved and not told:
                return
            self._transact(fresh, told, moved)
            self._keep(fresh, [outcome for outcome, _ in told])
            metrics.COMMIT_SECONDS.observe(time.monotonic() - started)
            _record(fresh)

    def _offsets_after(self, settled: Iterable[Settled]) -> set[TopicPartition]:
        """Moves what is done; gives the partitions that changed."""
        moved: set[TopicPartition] = set()
        for each in settled:
            for source in chain(each.judged, (refused.source for refused in each.refused)):
                moved.add(self._finish(self._topics.feedback, source))
            for closed in each.closed:
                if self._close(closed):
                    moved.add(self._finish(self._topics.pending, closed.source))
            for source in each.passed:
                moved.add(place := self._finish(self._topics.pending, source))
                self._written.pop(place, None)  # its offset alone says that it is done: no outcome names it
        return moved

    def _close(self, closed: Closed) -> bool:
        """Whether all groups of its record are closed with it."""
        groups = self._closed.setdefault(closed.source.place, set())
        groups.add(closed.group)
        if len(groups) < closed.of_groups:
            return False
        del self._closed[closed.source.place]
        return True

    def _finish(self, topic: str, source: Source) -> TopicPartition:
        partition, offset = source.place
        done = self._done[topic].setdefault(partition, OffsetSet())
        for each in range(max(source.first, done.low), offset + 1):
            done.add(each)
        return TopicPartition(topic, partition)

    def _transact(self, settled: Sequence[Settled], told: Iterable[_Told], moved: Iterable[TopicPartition]) -> None:
        with transaction(self._producer, f"a newer feedback pipeline holds {self._topics.join_id}; this one ends"):
            for topic, key, value, headers, told_ms in chain(self._records(settled), self._outcomes(told)):
                self._producer.send(topic, value, key, headers=headers, timestamp_ms=told_ms)
            crash_point("outcomes_sent")
            if positions := {place: self._position(place) for place in moved}:
                self._producer.send_offsets_to_transaction(positions, self._topics.join_group)
        crash_point("outcomes_committed")

    def _position(self, place: TopicPartition) -> OffsetAndMetadata:
        """Only rollouts need to have it written which of them are done out of turn: the outcomes name judgements."""
        done = self._done[place.topic][place.partition]
        beyond = self._beyond(place, done) if place.topic == self._topics.pending else ""
        return OffsetAndMetadata(done.low, beyond, -1)

    def _beyond(self, place: TopicPartition, done: OffsetSet) -> str:
        """What is done out of turn, or was a second ago: it only saves work, and to write it takes long."""
        low, text, told_s = self._written.get(place, (-1, "", 0.0))
        if low != done.low or time.monotonic() - told_s > _BEYOND_AGE_S:
            low, text, told_s = self._written[place] = (done.low, done.encode(), time.monotonic())
        return text

    def _records(self, settled: Iterable[Settled]) -> Iterator[_Record]:
        for each in settled:
            for contribution in each.contributions:
                value, headers = encode(contribution, each.joining)
                yield self._topics.trajectories, contribution.id.key(), value, list(headers.items()), None
            letters = chain(each.letters, (refused.letter for refused in each.refused))
            for letter in letters:
                if letter is not None:
                    yield self._topics.dead_letters, letter.key(), letter.encode(), [], None

    def _outcomes(self, told: Iterable[_Told]) -> Iterator[_Record]:
        for outcome, told_ms in told:
            yield self._topics.outcomes, outcome.group.key() if outcome.group else b"", outcome.encode(), [], told_ms

    def _keep(self, settled: Iterable[Settled], outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self._note(outcome)
            metrics.count(outcome)
        for each in settled:
            for closed in each.closed:
                self._decided.pop(closed.group, None)
        feedback = self._done[self._topics.feedback]
        if len(self._fates) > self._sweep_at:
            self._fates = {place for place in self._fates if place[1] not in feedback.get(place[0], _NONE)}
            self._sweep_at = 2 * len(self._fates) + _SWEEP_FATES

    def close(self) -> None:
        """Closes the connection."""
        self._producer.close(timeout=5)


def encode(contribution: Contribution, joining: Joining | None = None) -> tuple[bytes, dict[str, bytes]]:
    """The value and headers of its trajectories record; what it contributes goes on with the trace of its group."""
    contexts = {contribution.id: joining.trace} if joining else None
    return trajectories.encode(contribution.samples, {contribution.id: contribution.raters}, contexts)


def _record(settled: Iterable[Settled]) -> None:
    """The decisions that were committed."""
    now_s = time.time()
    for each in settled:
        if each.joining is None or each.outcome is None:
            continue
        trace, since_s, judged = each.joining
        facts = {"group": str(each.outcome.group), "outcome": each.outcome.kind, "judgements": len(each.judged)}
        traces.record(traces.Span(traces.below(trace), "join", min(since_s, now_s), now_s, facts, judged))


def _refusals(refused: Iterable[Refused]) -> Iterator[Outcome]:
    """Judgements that are used for no group, many as one outcome, of the time of the newest."""
    left = iter(refused)
    while part := list(islice(left, _MOST_REFUSALS)):
        told = [FeedbackFate.model_construct(at=source.place, fate=fate, id=name) for source, fate, name, _ in part]
        newest_s = max(each.source.appended_s for each in part)
        yield Outcome(kind="refused", feedback=tuple(told), decided_at=datetime.fromtimestamp(newest_s, UTC))


def _told_ms(outcome: Outcome, judged: Iterable[Source] = ()) -> int:
    """The time of an outcome's record, by the clock of the topics: not before any record that it is about.

    By the host's clock, which may be behind, a start would not find what became of the records that it reads again.
    """
    moments_s = (outcome.decided_at.timestamp(), *(source.appended_s for source in judged))
    return round(max(moments_s) * 1000)


def _read_offsets(config: RunConfig) -> dict[str, dict[int, OffsetSet]]:
    """What earlier pipelines committed, for every partition of pending and feedback."""
    topics = config.topics
    consumer = KafkaConsumer(group_id=topics.join_group, **config.kafka.consumer_options())
    try:
        return {topic: _read_topic_offsets(consumer, topic) for topic in (topics.pending, topics.feedback)}
    finally:
        consumer.close()


def _read_topic_offsets(consumer: Any, topic: str) -> dict[int, OffsetSet]:
    partitions = consumer.partitions_for_topic(topic)
    if not partitions:
        raise BrokerError(f"topic {topic} does not exist; create it with: asyncflow topics")
    places = [TopicPartition(topic, number) for number in sorted(partitions)]
    first = consumer.beginning_offsets(places)
    done: dict[int, OffsetSet] = {}
    for place in places:
        found = consumer.committed(place, metadata=True)
        known = found is not None and found.offset >= 0
        done[place.partition] = OffsetSet.decode(found.offset, found.metadata) if known else OffsetSet(first[place])
    return done


def _read_outcomes(config: RunConfig, done: dict[str, dict[int, OffsetSet]]) -> Iterator[Outcome]:
    """The decisions that may concern what is read again: none is older than the oldest of those records.

    Their own records have times by the same clock, see :func:`_told_ms`.
    """
    consumer = KafkaConsumer(**config.kafka.consumer_options())
    try:
        partition = TopicPartition(config.topics.outcomes, 0)
        since_ms = _oldest_ms(consumer, done)
        consumer.assign([partition])
        end = consumer.end_offsets([partition])[partition]
        since = {} if since_ms is None else {partition: max(0, since_ms - _BACK_MS)}
        found = consumer.offsets_for_times(since)[partition] if since else None
        consumer.seek(partition, found.offset if found else end)
        while consumer.position(partition) < end:
            for records in consumer.poll(timeout_ms=_POLL_MS).values():
                yield from (outcome for record in records if (outcome := _decode(record)))
    finally:
        consumer.close()


def _oldest_ms(consumer: Any, done: dict[str, dict[int, OffsetSet]]) -> int | None:
    """When the oldest record was appended that is not done; null if there is none."""
    starts = {TopicPartition(topic, number): each.low for topic, of in done.items() for number, each in of.items()}
    ends = consumer.end_offsets(list(starts))
    open_ = {place: low for place, low in starts.items() if low < ends[place]}
    oldest: int | None = None
    for place, low in open_.items():
        consumer.assign([place])
        consumer.seek(place, low)
        while consumer.position(place) < ends[place]:
            if records := consumer.poll(timeout_ms=_POLL_MS, max_records=1).get(place):
                oldest = min(oldest or records[0].timestamp, records[0].timestamp)
                break
    return oldest


def _decode(record: Any) -> Outcome | None:
    try:
        return Outcome.decode(record.value or b"")
    except RecordError as error:
        _LOG.error("outcome_not_read", offset=record.offset, detail=str(error))
        return None


_BOOKS: Final[dict[str, Book]] = {}
_LOCK: Final = threading.Lock()


def book_of(config: RunConfig) -> Book:
    """The book of this process, opened at the first call."""
    with _LOCK:
        if config.name not in _BOOKS:
            traces.open_tracing(config.tracing, config.name, "join-feedback")
            _BOOKS[config.name] = Book(config)
        return _BOOKS[config.name]


def close_all() -> None:
    """Closes every book of this process: the pipeline has ended."""
    with _LOCK:
        for book in _BOOKS.values():
            book.close()
        _BOOKS.clear()
