"""Records to Kafka from an event loop: whoever appends hears where the record lies once all replicas have it.

append ──► one thread ──► KafkaProducer ──acknowledged──► Place
"""

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import structlog
from kafka.errors import KafkaError

from pipelines.gateway import metrics
from schemas.config import KafkaConfig
from schemas.errors import BrokerError
from schemas.producers import connect_producer
from schemas.reach import unreachable

_LOG = structlog.get_logger(__name__)
_LONGEST_S: Final = 10.0
"""How long a client waits for Kafka at most; it can send again, which a pipeline could not."""
_LINGER_MS: Final = 1


class Place(NamedTuple):
    """Where a record lies, and since when by the clock of its topic."""

    partition: int
    offset: int
    written_at: datetime


class Appender:
    """A producer that is held open. After an error it is replaced: an idempotent one may never recover.

    Args:
        kafka: how to reach the broker.

    Raises:
        BrokerError: it cannot be reached.
        ConfigError: ``kafka.client`` holds what is none of kafka-python's settings.
    """

    def __init__(self, kafka: KafkaConfig) -> None:
        self._kafka = kafka
        self._timeout_s = min(kafka.request_timeout_s, _LONGEST_S)
        self._thread = ThreadPoolExecutor(1, "appender")
        self._suspect: Any = None
        try:
            self._producer = self._open()
        except KafkaError as error:
            raise unreachable(kafka, error) from error

    def _open(self) -> Any:
        timeout_ms = int(self._timeout_s * 1000)
        bounds = {
            "linger_ms": _LINGER_MS,
            "max_block_ms": timeout_ms,
            "request_timeout_ms": timeout_ms // 2,
            "delivery_timeout_ms": timeout_ms,  # what a client was told to send again is not delivered behind its back
        }
        return connect_producer({**self._kafka.producer_options(), **bounds})

    async def append(
        self, topic: str, value: bytes, key: bytes | None = None, headers: Mapping[str, bytes] | None = None
    ) -> Place:
        """Writes a record and waits until it is acknowledged.

        Args:
            topic: where to.
            value: of the record.
            key: chooses the partition; null for any.
            headers: of the record.

        Raises:
            BrokerError: it was not acknowledged in time; it may have been written all the same.
        """
        try:
            async with asyncio.timeout(self._timeout_s + 1):
                return await self._send(topic, value, key, list((headers or {}).items()))
        except (KafkaError, TimeoutError) as error:
            metrics.APPENDS_FAILED.labels(topic).inc()
            _LOG.warning("not_acknowledged", topic=topic, error=repr(error)[:300])
            raise BrokerError(
                f"Kafka did not acknowledge the record within {self._timeout_s:g} s; try again"
            ) from error

    async def _send(self, topic: str, value: bytes, key: bytes | None, headers: list[tuple[str, bytes]]) -> Place:
        loop = asyncio.get_running_loop()
        acknowledged: asyncio.Future[Any] = loop.create_future()

        def told(error: BaseException | None, metadata: Any = None) -> None:
            loop.call_soon_threadsafe(_settle, acknowledged, error, metadata)

        await loop.run_in_executor(self._thread, self._hand_over, (topic, value, key, headers), told)
        metadata = await acknowledged
        written_at = datetime.fromtimestamp(metadata.timestamp / 1000, UTC)
        return Place(metadata.partition, metadata.offset, written_at)

    def _hand_over(self, record: tuple[Any, ...], told: Any) -> None:
        """In the thread."""
        if self._suspect is self._producer:
            self._replace()
        producer = self._producer

        def failed(error: BaseException) -> None:
            self._suspect = producer
            told(error)

        try:
            producer.send(*record).add_callback(lambda metadata: told(None, metadata)).add_errback(failed)
        except KafkaError:
            self._suspect = producer
            raise

    def _replace(self) -> None:
        old, self._producer = self._producer, self._open()
        _LOG.info("producer_replaced")
        threading.Thread(target=old.close, args=(self._timeout_s,), name="old producer", daemon=True).start()

    def close(self) -> None:
        """Waits for what is on its way."""
        self._thread.shutdown()
        self._producer.close(self._timeout_s)


def _settle(acknowledged: asyncio.Future[Any], error: BaseException | None, metadata: Any) -> None:
    if acknowledged.done():
        return
    if error is None:
        acknowledged.set_result(metadata)
    else:
        acknowledged.set_exception(error)
