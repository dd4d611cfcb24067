"""Tells the rollout pipeline that this worker is there.

    serving ──► "up" every few seconds ──► {run}.workers ──► pools
    told to stop ──► "leaving", before anything is refused ──┘

A broker that is away stops nobody from serving: the worker says again a little later that it is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog
from pydantic import ValidationError

from schemas.errors import ConfigError
from schemas.producers import connect_producer
from schemas.workers import WorkerEntry
from transforms.listening import EVERY_ADDRESS

if TYPE_CHECKING:
    from schemas.config import RunConfig
    from transforms.generation.worker.state import WorkerState

_EVERY_S: Final = 2.0
_DELIVERY_S: Final = 5.0
"""How long a stopping worker waits for its last word to be written."""

log = structlog.get_logger(__name__)


class Registrar:
    """The entry of one worker in the registry.

    Raises:
        ConfigError: the worker's address cannot be announced.
    """

    def __init__(self, config: RunConfig, state: WorkerState) -> None:
        self.url = url_of(config)
        self._kafka, self._topic, self._state = config.kafka, config.topics.workers, state
        self._max_num_seqs = config.worker.max_num_seqs
        try:
            self._entry("up")
        except ValidationError as error:
            raise ConfigError(
                f"worker.host = {config.worker.host!r}: the pipeline cannot reach a worker at {self.url!r}; "
                "give the address that it can in worker.advertise"
            ) from error
        self._producer: Any = None
        self._announcing: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()

    def start(self) -> None:
        """From now on the worker is announced; it serves, or will in a moment."""
        self._announcing = asyncio.create_task(self._announce())

    async def leave(self) -> None:
        """Says that the worker will stop; returns when Kafka has written it, or does not within some seconds.

        Harmless if it was never announced.
        """
        if self._announcing is None:
            return
        self._leaving.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._announcing, _DELIVERY_S)

    async def _announce(self) -> None:
        log.info("announcing", topic=self._topic, url=self.url)
        while not self._leaving.is_set():
            await asyncio.to_thread(self._say, "up")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), _EVERY_S)
        await asyncio.to_thread(self._say, "leaving")
        log.info("left", topic=self._topic, url=self.url)

    def _say(self, state: Literal["up", "leaving"]) -> None:
        """Blocks until the record is written or given up."""
        from kafka.errors import KafkaError

        try:
            sent = self._connected().send(self._topic, self._entry(state).encode(), self.url.encode())
            sent.get(timeout=_DELIVERY_S)
        except (KafkaError, OSError) as error:
            log.warning("not_announced", topic=self._topic, state=state, error=repr(error))

    def _entry(self, state: Literal["up", "leaving"]) -> WorkerEntry:
        return WorkerEntry(url=self.url, state=state, version=self._state.version, max_num_seqs=self._max_num_seqs)

    def _connected(self) -> Any:
        if self._producer is None:
            limit_ms = int(_DELIVERY_S * 1000)  # what is late is of no use: the next one says the same
            limits = {"max_block_ms": limit_ms, "delivery_timeout_ms": limit_ms, "request_timeout_ms": limit_ms // 2}
            self._producer = connect_producer({**self._kafka.producer_options(), **limits})
        return self._producer

    def close(self) -> None:
        """Leaves the broker."""
        if self._producer is not None:
            self._producer.close(timeout=_DELIVERY_S)


def url_of(config: RunConfig) -> str:
    """Where the pipeline reaches the worker.

    Example: ``http://127.0.0.1:8000``; ``http://gpu-7:8000`` if the worker listens on every address.
    """
    if config.worker.advertise is not None:
        return config.worker.advertise
    host = socket.gethostname() if config.worker.host in EVERY_ADDRESS else config.worker.host
    return f"http://[{host}]:{config.worker.port}" if ":" in host else f"http://{host}:{config.worker.port}"
