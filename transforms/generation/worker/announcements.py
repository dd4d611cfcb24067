"""The ``weights`` topic, as a worker reads it: only the newest announcement counts, wherever it stands.

    weights topic ──► Announcements.newest() ──► follower

Kafka's consumer blocks and belongs to one thread at a time, so every call here is made in a thread
beside the event loop, one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import structlog

from schemas import traces
from schemas.errors import BrokerError, RecordError, StateError
from schemas.reach import unreachable
from schemas.weights import WeightVersion

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemas.config import RunConfig
    from schemas.trace_context import TraceContext

_PARTITION: Final = 0
"""The topic has one."""

log = structlog.get_logger(__name__)


class Announcements:
    """A reader that starts at the beginning of the topic and remembers how far it came."""

    on_bad_record: Callable[[str], None] | None = None
    """Called with the reason (``bad_record`` or ``old``) for every record that announces nothing new."""

    def __init__(self, config: RunConfig) -> None:
        """Connects.

        Raises:
            BrokerError: no broker answered within ``kafka.request_timeout_s``, or the topic is missing.
        """
        self._topic = config.topics.weights
        self._trace: tuple[int, TraceContext] | None = None
        self._consumer = _connect(config)
        try:
            self._seek_to_beginning(config.kafka.bootstrap)
        except BaseException:
            self.close()
            raise

    def _seek_to_beginning(self, bootstrap: str) -> None:
        from kafka import TopicPartition

        if _PARTITION not in self._consumer.partitions_for_topic(self._topic):
            raise BrokerError(f"topic {self._topic} does not exist at {bootstrap}; create it, or check the run's name")
        partition = TopicPartition(self._topic, _PARTITION)
        self._consumer.assign([partition])
        self._consumer.seek(partition, self._consumer.beginning_offsets([partition])[partition])

    def newest(self, timeout_s: float) -> WeightVersion | None:
        """Reads what was announced since the last call; waits if nothing was.

        Returns:
            The newest announcement, the superseded ones skipped; None if none came within ``timeout_s``.

        Raises:
            StateError: the topic lost records that were not read yet.
        """
        newest: WeightVersion | None = None
        records = self._poll(timeout_s)
        while records:
            for record in records:
                newest = self._newer(newest, record)
            records = self._poll(0)
        return newest

    def _newer(self, newest: WeightVersion | None, record: Any) -> WeightVersion | None:
        announced = self._decode(record)
        if announced is None or newest is None or announced.supersedes(newest):
            return announced or newest
        detail = f"version {announced.version} of generation {announced.generation}"
        after = f"version {newest.version} of generation {newest.generation}"
        self._pass_over(record, "old", f"{detail} after {after}")
        return newest

    def _poll(self, timeout_s: float) -> list[Any]:
        from kafka.errors import NoOffsetForPartitionError, OffsetOutOfRangeError

        try:
            polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            raise StateError(f"topic {self._topic} was cut or created anew under this worker: {error}") from error
        return [record for records in polled.values() for record in records]

    def _decode(self, record: Any) -> WeightVersion | None:
        try:
            announced = WeightVersion.decode(record.value or b"")
        except RecordError as error:
            self._pass_over(record, "bad_record", f"{error}")
            return None
        if trace := traces.given_in(record):
            self._trace = (announced.version, trace)
        return announced

    def trace_of(self, announced: WeightVersion) -> TraceContext | None:
        """The span that published the newest version; null for another one, or where nothing is traced."""
        version, trace = self._trace or (0, None)
        return trace if version == announced.version else None

    def _pass_over(self, record: Any, reason: str, detail: str) -> None:
        log.error("bad_announcement", topic=self._topic, offset=record.offset, reason=reason, detail=detail)
        if self.on_bad_record is not None:
            self.on_bad_record(reason)

    def close(self) -> None:
        """Leaves the broker."""
        self._consumer.close()


def _connect(config: RunConfig) -> Any:
    from kafka import KafkaConsumer
    from kafka.errors import KafkaError

    options = {
        "bootstrap_timeout_ms": int(config.kafka.request_timeout_s * 1000),
        "allow_auto_create_topics": False,
        **config.kafka.consumer_options(),
    }
    try:
        return KafkaConsumer(**options)
    except (KafkaError, OSError) as error:
        raise unreachable(config.kafka, error) from error
