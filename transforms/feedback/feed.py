"""What one process has read of pending and feedback: one consumer, one gate, one clock.

    pending  ──► decode ──► Awaited, with what was decided before ─┐
    feedback ──► Gate ────► Judged ────────────────────────────────┴──► Batch
                  └───────► Settled: refused, or dealt with before

The watermark is the time of what was read last; of partitions that are read to their end a little before now. It never
stands still while nothing comes, so that timers fire (a source that is idle otherwise blocks them all), and a backlog
is worked off by its own time: what a pipeline missed while it was away does not expire because it was away.

A feed begins where the book says, with the oldest record that is not done. It outlives the readers that Beam builds:
one that is built anew goes on where the last one was, and only one that Beam sets back begins again.
"""

import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import RecordError, StateError
from schemas.identity import FEEDBACK
from schemas.trajectories import Sample, decode
from transforms.feedback.book import book_of
from transforms.feedback.gate import Gate, merge
from transforms.feedback.items import Awaited, Item, Judged, Settled, Source
from transforms.feedback.pace import PACE

_LOG = structlog.get_logger(__name__)
_PATIENCE_MS: Final = 80
"""How long a bundle waits for its first record: less than the 100 ms after which Prism asks for its progress."""
_MOST_RECORDS: Final = 4000
"""Of one bundle."""
_IDLE_LAG_S: Final = 0.5
"""How far the watermark stays behind the clock where nothing waits: more than broker and reader differ in their clocks.
What is later than that is joined all the same, by decisions that are made without it."""
_ASK_S: Final = 0.2
"""Time between two questions where the topics end."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one bundle is made of."""

    items: tuple[Item, ...]
    settled: tuple[Settled, ...]


@dataclass(frozen=True, slots=True)
class At:
    """A place in a feed."""

    feed: str
    """Its name; each has its own."""
    batches: int
    """That it has given."""


class Feed:
    """Reads both topics, batch by batch.

    Args:
        config: of the run.

    Attributes:
        batch: the newest one.
        batch_s: when the oldest of its records was appended, in seconds since 1970.
        watermark_s: everything that was appended before has been given.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._book, self._gate = book_of(config), Gate(config)
        self._name, self._batches = uuid.uuid4().hex, 0
        self._next = self._book.starts()
        self._reached_s = dict.fromkeys(self._next, 0.0)
        self._asked_s = self.watermark_s = self.batch_s = 0.0
        self.batch = Batch((), ())
        self._consumer = KafkaConsumer(**config.kafka.consumer_options(), max_poll_records=_MOST_RECORDS)
        self._consumer.assign(sorted(self._next))
        for partition, offset in self._next.items():
            self._consumer.seek(partition, offset)

    @property
    def at(self) -> At:
        """Where it is."""
        return At(self._name, self._batches)

    def advance(self) -> bool:
        """Moves to the next batch; waits a little if nothing has come or the state has enough to do."""
        if not PACE.has_room():
            time.sleep(_PATIENCE_MS / 1000)
            return False
        polled = self._poll()
        found = [self._read(partition, record) for partition, records in polled.items() for record in records]
        self._move_watermark(polled)
        items = tuple(each for of in found for each in of if isinstance(each, Awaited | Judged))
        refused = [each for of in found for each in of if isinstance(each, Settled)]
        PACE.give(len(items))
        self.batch = Batch(items, (merge(refused),) if refused else ())
        self.batch_s = min((record.timestamp for of in polled.values() for record in of), default=0) / 1000
        self._batches += bool(found)
        return bool(found)

    def _poll(self) -> dict[Any, list[Any]]:
        """What has come; nothing while the broker is away.

        Raises:
            StateError: records that were never read are gone.
        """
        try:
            polled: dict[Any, list[Any]] = self._consumer.poll(timeout_ms=_PATIENCE_MS)
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            raise StateError(f"feedback that was never read is gone from its topic: {error}") from error
        except KafkaError as error:
            _LOG.error("feedback_not_read", error=repr(error))
            time.sleep(_PATIENCE_MS / 1000)
            return {}
        return polled

    def _move_watermark(self, polled: dict[Any, list[Any]]) -> None:
        for partition, records in polled.items():
            self._reached_s[partition] = max(self._reached_s[partition], records[-1].timestamp / 1000)
        if time.time() - self._asked_s > _ASK_S:
            self._find_ends()
        self.watermark_s = max(self.watermark_s, min(self._reached_s.values()))

    def _find_ends(self) -> None:
        """Asks the broker which partitions are read to their ends; that nothing was polled may mean that it is slow."""
        self._asked_s = time.time()
        try:
            ends = self._consumer.end_offsets(list(self._reached_s))
            done = [partition for partition, end in ends.items() if self._consumer.position(partition) >= end]
        except KafkaError as error:
            _LOG.error("ends_not_known", error=repr(error))
            return
        for partition in done:
            self._reached_s[partition] = max(self._reached_s[partition], self._asked_s - _IDLE_LAG_S)

    def _read(self, partition: TopicPartition, record: Any) -> list[Item | Settled]:
        source = Source((record.partition, record.offset), self._next[partition], record.timestamp / 1000)
        self._next[partition] = record.offset + 1
        if partition.topic == self._config.topics.pending:
            return list(self._read_pending(source, record))
        if self._book.has_fate(source.place):
            return [Settled(judged=(source,))]
        return [self._gate.look(source, record.value)]

    def _read_pending(self, source: Source, record: Any) -> Iterator[Item | Settled]:
        if self._book.is_closed(source.place):
            yield Settled(passed=(source,))
            return
        try:
            groups = decode(record.value, dict(record.headers))
        except RecordError as error:
            yield self._unreadable(source, error, record.value or b"")
            return
        if fault := find_misplaced(groups, self._config.name):
            yield self._unreadable(source, RecordError("bad_row", fault), record.value)
            return
        for samples in groups:
            group = samples[0].group
            decision = self._book.decision_of(group)
            if len(groups) == 1:  # as it came
                yield Awaited(group, source, 1, len(samples), record.value, tuple(record.headers), decision)
            else:
                yield Awaited.of(source, samples, of_groups=len(groups), decision=decision)

    def _unreadable(self, source: Source, error: RecordError, value: bytes) -> Settled:
        _LOG.error("pending_unreadable", place=source.place, reason=error.reason, detail=error.detail[:300])
        letter = DeadLetter.of("join", error.reason, error.detail, (self._config.topics.pending, *source.place), value)
        return Settled(letters=(letter,), passed=(source,))

    def close(self) -> None:
        """Closes the connection."""
        self._consumer.close()


def find_misplaced(groups: list[list[Sample]], run: str) -> str | None:
    """A group that nobody can wait for: of another run, or of a name that only feedback gives."""
    for samples in groups:
        if samples[0].run != run:
            return f"group {samples[0].group} is of run {samples[0].run[:80]!r}, this is {run!r}"
        if samples[0].prompt_partition >= FEEDBACK:
            return f"group {samples[0].group} is named by feedback, expected a prompt or an exchange"
    return None


_FEEDS: Final[dict[str, Feed]] = {}
_LOCK: Final = threading.Lock()


def feed_of(config: RunConfig, at: At | None) -> Feed:
    """The feed of this process, where it is at the place; else a new one, which begins where the book says."""
    with _LOCK:
        known = _FEEDS.get(config.name)
        if known is not None and known.at == at:
            return known
        if known is not None:
            known.close()
        _FEEDS[config.name] = Feed(config)
        return _FEEDS[config.name]


def close_all() -> None:
    """Closes every feed of this process: the pipeline has ended."""
    with _LOCK:
        for feed in _FEEDS.values():
            feed.close()
        _FEEDS.clear()
