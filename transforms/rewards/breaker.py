"""The circuit breaker of a service: one that failed often in a row is left alone for a while.

    closed ──failures in a row──► open ──its time is over──► one probe ──► closed
                                   ▲                             └─failed─► open, twice as long
                                   └─────────────────────────────────────────┘

Whoever comes while it is open waits; nobody is sent away here. It lives in one event loop.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from schemas.errors import ServiceError
from transforms import metrics

_LOG = structlog.get_logger(__name__)
_LONGEST_OPEN_S: Final = 60.0


class Breaker:
    """Of one service.

    Args:
        service: its name, for logs and figures.
        open_after: failures in a row that open it.
        open_s: how long it is open at first.
        clock: in seconds, never going back.
    """

    def __init__(
        self, service: str, open_after: int, open_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._service, self._open_after, self._first_open_s, self._clock = service, open_after, open_s, clock
        self._failures = 0
        """In a row."""
        self._open_s = open_s
        self._open_until: float | None = None
        """Null while it is closed."""
        self._probing = False
        self._changed = asyncio.Event()
        self.worked_s = float("-inf")
        """When the service last answered, by the clock."""
        self._gauge = metrics.SERVICE_LEFT_ALONE.labels(service)
        self._gauge.set(0)

    @property
    def is_open(self) -> bool:
        """Whether the service is left alone."""
        return self._open_until is not None

    @asynccontextmanager
    async def passage(self) -> AsyncIterator[bool]:
        """Waits until a request may be sent, and learns from what becomes of it.

        Yields whether it is a probe. A ``ServiceError`` out of the context is a failure, another exception
        says nothing; whoever got an answer calls :meth:`works`.
        """
        probe = await self._enter()
        try:
            yield probe
        except ServiceError as error:
            self.failed(str(error), probe=probe)
            raise
        finally:
            if probe and self._probing:  # neither answered nor failed: the next one tries
                self._probing = False
                self._tell()

    async def _enter(self) -> bool:
        while self._open_until is not None:
            left_s = self._open_until - self._clock()
            if left_s <= 0 and not self._probing:
                self._probing = True
                return True
            await self._wait(None if self._probing else left_s)
        return False

    async def _wait(self, most_s: float | None) -> None:
        try:
            async with asyncio.timeout(most_s):
                await self._changed.wait()
        except TimeoutError:
            pass

    def works(self) -> None:
        """The service answered."""
        self.worked_s = self._clock()
        self._failures = 0
        if self._open_until is not None:
            _LOG.info("service_is_back", service=self._service)
        self._open_until, self._open_s, self._probing = None, self._first_open_s, False
        self._tell()

    def failed(self, why: str, *, probe: bool = False) -> None:
        """The service did not answer, or answered that nothing can be had of it.

        A probe that fails after an older request was answered is a failure like any other.
        """
        self._failures += 1
        if probe and self.is_open:
            self._open_s = min(2 * self._open_s, _LONGEST_OPEN_S)
        elif self.is_open or self._failures < self._open_after:
            return
        self._open_until, self._probing = self._clock() + self._open_s, False
        _LOG.warning("service_left_alone", service=self._service, for_s=self._open_s, error=why[:300])
        self._tell()

    def _tell(self) -> None:
        self._gauge.set(float(self.is_open))
        self._changed.set()
        self._changed = asyncio.Event()
