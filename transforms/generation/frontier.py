"""Which prompts may be answered, and by which weight version at least: follows the admission topic."""

import threading
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from schemas.admission import AdmissionFrontier
from schemas.config import RunConfig
from schemas.errors import RecordError

_LOG = structlog.get_logger(__name__)
_POLL_MS: Final = 500
_PAUSE_S: Final = 0.5


class Frontier:
    """The frontier of every prompts partition and how it got there. Safe to use from several threads.

    Example: after frontiers 8 (version 1) and 16 (version 2) offset 9 needs version 2, and offset 16
    may not be generated.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[int, list[int]] = {}
        self._versions: dict[int, list[int]] = {}

    def apply(self, record: AdmissionFrontier) -> None:
        """Moves on. A frontier never goes back: what was admitted stays admitted."""
        with self._lock:
            for partition, end in record.frontier.items():
                ends = self._ends.setdefault(partition, [])
                if not ends or end > ends[-1]:
                    ends.append(end)
                    self._versions.setdefault(partition, []).append(record.version)

    def end(self, partition: int) -> int:
        """The first offset that may not be generated yet."""
        with self._lock:
            ends = self._ends.get(partition)
            return ends[-1] if ends else 0

    def min_version(self, partition: int, offset: int) -> int:
        """The version of the record that was the first to admit the prompt.

        Raises:
            LookupError: the prompt is not admitted.
        """
        with self._lock:
            index = bisect_right(self._ends.get(partition, []), offset)
            versions = self._versions.get(partition, [])
            if index >= len(versions):
                raise LookupError(f"prompt {partition}/{offset} is not admitted")
            return versions[index]


class FrontierFollower:
    """Keeps a :class:`Frontier` up to date in a thread of its own."""

    def __init__(self, config: RunConfig, on_change: Callable[[], None]) -> None:
        self.frontier = Frontier()
        self._on_change = on_change
        self._stopping = threading.Event()
        topic = TopicPartition(config.topics.admission, 0)
        self._consumer = KafkaConsumer(**{**config.kafka.consumer_options(), "fetch_max_wait_ms": _POLL_MS})
        self._consumer.assign([topic])
        self._consumer.seek_to_beginning(topic)
        self._thread = threading.Thread(target=self._follow, name="admission", daemon=True)

    def start(self) -> None:
        """Begins to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                polled = self._consumer.poll(_POLL_MS)
            except KafkaError as error:
                _LOG.error("admission_not_read", error=repr(error))
                self._stopping.wait(_PAUSE_S)
                continue
            for message in (message for messages in polled.values() for message in messages):
                self._apply(message)
        self._consumer.close()

    def _apply(self, message: Any) -> None:
        try:
            record = AdmissionFrontier.decode(message.value or b"")
        except RecordError as error:
            _LOG.error("admission_record_skipped", offset=message.offset, error=str(error))
            return
        self.frontier.apply(record)
        self._on_change()
        _LOG.debug("admitted", version=record.version, frontier=record.frontier)
