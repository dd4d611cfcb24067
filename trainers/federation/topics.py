"""A coordinator's ends of the topics: what sites say comes in order, what is decided goes out whole.

F.sites, F.updates ──► Inbox ──► the coordinator ──► Writer ──► F.rounds + F.weights, one transaction
"""

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from kafka import TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from schemas.crash_points import crash_point
from schemas.errors import BrokerError, RecordError
from schemas.federating import FederationConfig
from schemas.federation import CoordinatorStart, Merge, RoundOrder, Site
from schemas.transactions import open_producer, transaction
from schemas.weights import WeightVersion
from trainers.federation.selection import Heard
from trainers.log import CONNECT_TIMEOUT_MS, assign, open_consumer, partitions_of

Decision = CoordinatorStart | RoundOrder | Merge | WeightVersion

_ATTEMPTS: Final = 5
_log = structlog.get_logger(__name__)


class Inbox:
    """One consumer of both topics of the sites."""

    def __init__(self, config: FederationConfig, position: int) -> None:
        """Begins with the sites that are there, and with the updates from a position on.

        Raises:
            BrokerError: a topic does not exist.
            StateError: updates that were not read yet are gone.
        """
        self.heard: dict[str, Heard] = {}
        self._known = set(config.sites)
        self._keys = {name: key for name in config.sites if (key := config.key_of(name))}
        self._federation = config.name
        self._consumer = open_consumer(config)
        (self._said,) = partitions_of(self._consumer, config.topics.sites)
        (self._updates,) = partitions_of(self._consumer, config.topics.updates)
        assign(self._consumer, {self._said: None, self._updates: position})
        self._waiting: deque[Any] = deque()
        self._given = position
        self._end = self._consumer.end_offsets([self._updates])[self._updates]

    def next(self, timeout_s: float) -> Any | None:
        """The next record of the updates; null if none came. Sites are taken note of on the way.

        Raises:
            OffsetOutOfRangeError: records that were not read yet are gone.
        """
        if not self._waiting:
            polled = self._poll(timeout_s)
            for record in polled.get(self._said, []):
                self._note(record)
            self._waiting.extend(polled.get(self._updates, []))
        if not self._waiting:
            return None
        record = self._waiting.popleft()
        self._given = record.offset + 1
        return record

    def _poll(self, timeout_s: float) -> dict[TopicPartition, list[Any]]:
        """What sites say is kept for an hour: who looks away for longer goes on with what is there."""
        try:
            polled: dict[TopicPartition, list[Any]] = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        except OffsetOutOfRangeError as error:
            if set(error.args[0]) != {self._said}:
                raise
            _log.warning("what sites said meanwhile is gone, going on with what they say now")
            self._consumer.seek_to_beginning(self._said)
            return {}
        return polled

    @property
    def has_caught_up(self) -> bool:
        """Whether all that lay in the log at the start was given out."""
        return self._given >= self._end or (not self._waiting and self._consumer.position(self._updates) >= self._end)

    def _note(self, record: Any) -> None:
        try:
            site = Site.decode(record.value)
        except RecordError as error:
            _log.warning("what a site says cannot be read", error=str(error))
            return
        key = self._keys.get(site.site)
        if (self._known and site.site not in self._known) or (key and not site.is_by(self._federation, key)):
            _log.warning("somebody speaks for a site", site=site.site, known=site.site in self._known)
            return
        self.heard[site.site] = Heard(site, datetime.fromtimestamp(record.timestamp / 1000, UTC))

    def close(self) -> None:
        """Closes the connection."""
        self._consumer.close()


class Writer:
    """The coordinator's producer. Creating it fences every older coordinator of the federation."""

    def __init__(self, config: FederationConfig) -> None:
        self._topics, self._key = config.topics, config.name.encode()
        timeout = {"bootstrap_timeout_ms": CONNECT_TIMEOUT_MS}
        self._producer = open_producer(config.kafka, config.topics.coordinator_id, **timeout)
        self._fenced = (
            f"a newer coordinator leads federation {config.name!r}, or this one was away for longer than "
            "kafka.transaction_timeout_s: it ends"
        )

    def commit(self, decisions: Sequence[Decision]) -> None:
        """Writes all in one transaction; returns when it is committed.

        Raises:
            FencedError: a newer coordinator has taken over.
            BrokerError: the transaction failed again and again, or cannot be aborted.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._try(decisions)
            except KafkaError as error:
                _log.error("transaction failed", attempt=attempt, error=str(error))
            else:
                return
        raise BrokerError(f"Kafka refused a transaction {_ATTEMPTS} times; see its log")

    def _try(self, decisions: Sequence[Decision]) -> None:
        with transaction(self._producer, self._fenced):
            futures = [self._producer.send(self._topic(each), each.encode(), self._key) for each in decisions]
            self._producer.flush()
            if any(isinstance(each, Merge) for each in decisions):
                crash_point("merge_in_transaction")
        for future in futures:
            future.get(timeout=0)  # committed means delivered; this raises what went wrong otherwise

    def _topic(self, decision: Decision) -> str:
        return self._topics.weights if isinstance(decision, WeightVersion) else self._topics.rounds

    def close(self) -> None:
        """Closes the connection."""
        self._producer.close(timeout=5)
