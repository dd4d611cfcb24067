"""Following a topic of one partition in a thread of its own, record by record.

    topic ──► TopicFollower (thread) ──► apply(record)

What cannot be read is logged and passed over; a broker that is away is waited for.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from schemas.config import KafkaConfig
from schemas.errors import BrokerError, RecordError

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_LOG = structlog.get_logger(__name__)
_POLL_MS: Final = 500
_PAUSE_S: Final = 0.5


class Decoder(Protocol[R_co]):
    """A class of records, or whatever else reads their values."""

    def decode(self, value: bytes) -> R_co:
        """Raises RecordError."""


class TopicFollower(Generic[R]):
    """Calls ``apply`` with every record of a topic, in its order.

    Args:
        kafka: of the run.
        topic: of one partition.
        kind: of its records.
        apply: called in the follower's thread.
        last_s: begin with the records of so many seconds; null for the beginning of the topic.

    Raises:
        BrokerError: there is no such topic.
        KafkaError: no broker answers.
    """

    def __init__(
        self, kafka: KafkaConfig, topic: str, kind: Decoder[R], apply: Callable[[R], None], last_s: float | None = None
    ) -> None:
        self._kind, self._apply, self._last_s = kind, apply, last_s
        self._stopping = threading.Event()
        self._partition = TopicPartition(topic, 0)
        self._consumer = KafkaConsumer(**{**kafka.consumer_options(), "fetch_max_wait_ms": _POLL_MS})
        if not self._consumer.partitions_for_topic(topic):
            raise BrokerError(f"topic {topic} does not exist at {kafka.bootstrap}; create it with asyncflow topics")
        self._consumer.assign([self._partition])
        self._seek()
        self._thread = threading.Thread(target=self._follow, name=topic, daemon=True)

    def _seek(self) -> None:
        """To the first record that matters."""
        if self._last_s is None:
            self._consumer.seek_to_beginning(self._partition)
            return
        since_ms = int((time.time() - self._last_s) * 1000)
        found = self._consumer.offsets_for_times({self._partition: since_ms})[self._partition]
        if found is None:
            self._consumer.seek_to_end(self._partition)
        else:
            self._consumer.seek(self._partition, found.offset)

    def start(self) -> None:
        """Begins to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                self._read_some()
            except KafkaError as error:
                _LOG.error("topic_not_read", topic=self._partition.topic, error=repr(error))
                self._stopping.wait(_PAUSE_S)
        self._consumer.close()

    def _read_some(self) -> None:
        try:
            polled = self._consumer.poll(_POLL_MS)
        except OffsetOutOfRangeError:
            self._seek()  # Kafka has deleted what was to be read next
            return
        for message in polled.get(self._partition, ()):
            self._take(message)

    def _take(self, message: Any) -> None:
        try:
            record = self._kind.decode(message.value or b"")
        except RecordError as error:
            _LOG.error("record_skipped", topic=message.topic, offset=message.offset, error=str(error))
            return
        self._apply(record)
