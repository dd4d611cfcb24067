"""What one process has read of pending and feedback: one consumer, one gate, one clock.

    pending  ──┐           ┌──► decode ──► Awaited, with what was decided before ─┐
               ├──► Order ─┤                                                      │
    feedback ──┘           └──► Gate ────► Judged ────────────────────────────────┴──► Batch
                                 └───────► Refused; or passed over: dealt with before

Records of all partitions are given in the order of their times (:class:`transforms.feedback.order.Order`), so what
becomes of them does not depend on how they were read. The watermark is the time until which all was given; where every
partition is read to its end it is a little before now. It never stands still while nothing comes, so that timers fire
(a source that is idle otherwise blocks them all), and a backlog is worked off by its own time: what a pipeline missed
while it was away does not expire because it was away.

A feed begins where the book says, with the oldest record that is not done. It outlives the readers that Beam builds:
one that is built anew goes on where the last one was, and only one that Beam sets back begins again.
"""

import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import structlog
from kafka import TopicPartition
from kafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from schemas import traces
from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import RecordError, StateError
from schemas.identity import FEEDBACK
from schemas.trajectories import Sample, decode
from transforms.feedback.book import book_of
from transforms.feedback.consumer import PausingConsumer
from transforms.feedback.gate import Gate, merge
from transforms.feedback.items import Awaited, Item, Judged, Refused, Settled, Source
from transforms.feedback.order import Order
from transforms.feedback.pace import PACE

_LOG = structlog.get_logger(__name__)
_PATIENCE_MS: Final = 80
"""How long a bundle waits for its first record: less than the 100 ms after which Prism asks for its progress."""
_MOST_RECORDS: Final = 4000
"""Of one bundle."""
_FETCH_BYTES: Final = 512 << 10
"""Of one partition at once; the broker gives a larger record whole. A consumer hands out all of one answer before it
looks at the next partition."""
_IDLE_LAG_S: Final = 0.5
"""How far the watermark stays behind the clock where nothing waits: more than broker and reader differ in their clocks.
What is later than that is joined all the same, by decisions that are made without it; so is what a transaction had
kept from readers for longer."""
_MOST_AHEAD_S: Final = 5.0
"""How much later than this clock a broker's may be before it is not believed: records wait for their moment where other
partitions are idle."""
_ASK_S: Final = 0.2
"""Time between two questions where the topics end."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one bundle is made of."""

    items: tuple[Item, ...]
    settled: Settled | None
    """What needs no state: refused, or dealt with before."""


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
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._book, self._gate = book_of(config), Gate(config)
        self._name, self._batches = uuid.uuid4().hex, 0
        self._next = self._book.starts()
        self._order = Order(self._next)
        self._asked_s = self.batch_s = 0.0
        self.batch = Batch((), None)
        self._consumer = PausingConsumer(
            **config.kafka.consumer_options() | {"max_partition_fetch_bytes": _FETCH_BYTES},
            max_poll_records=_MOST_RECORDS,
        )
        self._consumer.assign(sorted(self._next))
        for partition, offset in self._next.items():
            self._consumer.seek(partition, offset)

    @property
    def at(self) -> At:
        """Where it is."""
        return At(self._name, self._batches)

    @property
    def watermark_s(self) -> float:
        """Everything that was appended until then has been given."""
        return max(0.0, self._order.given_ms / 1000)

    def advance(self) -> bool:
        """Moves to the next batch; waits a little if nothing has come or the state has enough to do."""
        if not PACE.has_room():
            time.sleep(_PATIENCE_MS / 1000)
            return False
        latest_ms = round((time.time() + _MOST_AHEAD_S) * 1000)
        for partition, records in self._poll().items():
            self._order.put(partition, records, latest_ms)
        if self._may_know_more():
            self._find_ends()
        placed = self._order.take(_MOST_RECORDS)
        found = [each for partition, record in placed for each in self._read(partition, record)]
        items = tuple(each for each in found if isinstance(each, Awaited | Judged))
        PACE.give(len(items))
        self.batch = Batch(items, merge(each for each in found if isinstance(each, Refused | Settled)))
        self.batch_s = placed[0][1].timestamp / 1000 if placed else 0.0
        self._batches += bool(found)
        return bool(found)

    def _poll(self) -> dict[Any, list[Any]]:
        """What has come; nothing while the broker is away.

        Raises:
            StateError: records that were never read are gone.
        """
        self._hold_back()
        try:
            polled: dict[Any, list[Any]] = self._consumer.poll(timeout_ms=self._patience_ms())
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            raise StateError(f"feedback that was never read is gone from its topic: {error}") from error
        except KafkaError as error:
            _LOG.error("feedback_not_read", error=repr(error))
            time.sleep(_PATIENCE_MS / 1000)
            return {}
        return polled

    def _patience_ms(self) -> int:
        """How long to wait for more: not beyond the moment when the next record that is held back may be given."""
        if self._order.is_ready:
            return 0
        free_ms = self._order.waits_for_ms + 1000 * (_IDLE_LAG_S - time.time())
        return round(min(_PATIENCE_MS, free_ms)) if free_ms > 0 else _PATIENCE_MS

    def _hold_back(self) -> None:
        """Pauses partitions that are read faster than the others, until those have come as far."""
        ahead, paused = self._order.ahead(), self._consumer.paused()
        self._consumer.pause(*(ahead - paused))
        self._consumer.resume(*(paused - ahead))

    def _may_know_more(self) -> bool:
        """Whether it is time to ask where the topics end: now and then, and when that would set something free."""
        now_s, waits_s = time.time(), self._order.waits_for_ms / 1000
        return now_s - self._asked_s > _ASK_S or self._asked_s - _IDLE_LAG_S <= waits_s < now_s - _IDLE_LAG_S

    def _find_ends(self) -> None:
        """Asks the broker which partitions are read to their ends; that nothing was polled may mean that it is slow.

        Raises:
            StateError: a topic has more partitions than when the feed was opened.
        """
        self._asked_s = time.time()
        self._refuse_more_partitions()
        try:
            ends = self._consumer.end_offsets(list(self._next))
            done = [partition for partition, end in ends.items() if self._consumer.position(partition) >= end]
        except KafkaError as error:
            _LOG.error("ends_not_known", error=repr(error))
            return
        for partition in done:
            self._order.know(partition, int((self._asked_s - _IDLE_LAG_S) * 1000))

    def _refuse_more_partitions(self) -> None:
        """Nobody would read them: what lies there would neither count nor expire. The client asks every few minutes."""
        for topic in {partition.topic for partition in self._next}:
            known = {partition.partition for partition in self._next if partition.topic == topic}
            if more := self._consumer.partitions_for_topic(topic) - known:
                raise StateError(
                    f"topic {topic} had {len(known)} partitions and was given {len(more)} more, which are not read "
                    f"yet; set kafka.partitions = {len(known | more)} and start the pipeline anew"
                )

    def _read(self, partition: TopicPartition, record: Any) -> Iterable[Item | Refused | Settled]:
        source = Source((record.partition, record.offset), self._next[partition], record.timestamp / 1000)
        self._next[partition] = record.offset + 1
        if partition.topic == self._config.topics.pending:
            return self._read_pending(source, record)
        if self._book.has_fate(source.place):
            if not self._book.was_limited(source.place):
                self._gate.remember(source, record.value)
            return (Settled(judged=(source,)),)
        return (self._gate.look(source, record.value, traces.given_in(record)),)

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
        contexts = traces.groups_in(record)
        for samples in groups:
            group = samples[0].group
            decision, trace = self._book.decision_of(group, source.place), contexts.get(group)
            if len(groups) == 1:  # as it came
                yield Awaited(group, source, 1, len(samples), record.value, decision, trace)
            else:
                yield Awaited.of(source, samples, of_groups=len(groups), decision=decision, trace=trace)

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
