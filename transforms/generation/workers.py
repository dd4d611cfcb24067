"""Which worker answers which request.

A request goes to the worker that its prefix belongs to, as long as that worker is not busier than
the others (so that prompts with one beginning share a worker's prefix cache, and no worker is
flooded by them). A worker that does not answer is left out until its ``/health`` is good again.
While none is up, requests wait: they do not fail.
"""

import asyncio
import contextlib
import hashlib
import math
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import aiohttp
import structlog

from transforms import metrics

_LOG = structlog.get_logger(__name__)
_PREFIX_TOKENS: Final = 64
"""How many leading tokens decide which worker a prompt belongs to."""
_OVERLOAD: Final = 1.25
"""A worker takes at most this multiple of the mean load before others help."""
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_HEALTH_TIMEOUT_S: Final = 5.0


class AbandonedError(Exception):
    """The pipeline ends before this prompt was given to a worker; the next one will answer it."""


@dataclass(slots=True, eq=False)
class Worker:
    """One vLLM server as the pipeline sees it."""

    url: str
    up: bool = True
    load: int = 0
    """Samples that it is answering for this pool."""
    deaths: int = 0
    """How often it went away while it was answering."""


def choose(workers: Sequence[Worker], prefix: Sequence[int], samples: int) -> Worker:
    """The worker for a prompt that begins with ``prefix``.

    Of those that stay below the allowed load it is the first in the order that the prefix draws
    (rendezvous hashing with bounded loads).
    """
    total = sum(worker.load for worker in workers) + samples
    allowed = max(samples, math.ceil(_OVERLOAD * total / len(workers)))
    ranked = sorted(workers, key=lambda worker: _rank(worker.url, prefix))
    fitting = [worker for worker in ranked if worker.load + samples <= allowed]
    return fitting[0] if fitting else min(ranked, key=lambda worker: worker.load)


def _rank(url: str, prefix: Sequence[int]) -> bytes:
    return hashlib.blake2b(f"{url} {prefix[:_PREFIX_TOKENS]}".encode(), digest_size=8).digest()


class Workers:
    """All workers of a pipeline. Lives in one event loop."""

    def __init__(self, urls: Sequence[str], session: aiohttp.ClientSession, share: int) -> None:
        self._workers = [Worker(url.rstrip("/")) for url in urls]
        self._session = session
        self._some_up = asyncio.Event()
        self._some_up.set()
        self._gauge = metrics.WORKERS_UP.labels(str(share))
        self._gauge.set(len(self._workers))
        self._checks: set[asyncio.Task[None]] = set()
        self._draining = False

    @contextlib.asynccontextmanager
    async def taken(self, prefix: Sequence[int], samples: int, avoid: Collection[str]) -> AsyncIterator[Worker]:
        """A worker for one request, waiting while none is up.

        Args:
            prefix: the prompt's token ids.
            samples: how many answers the request asks for.
            avoid: workers that failed this prompt; taken only if there is no other.

        Raises:
            AbandonedError: the pipeline ends; only what is being answered is still finished.
        """
        await self._some_up.wait()
        if self._draining:
            raise AbandonedError
        up = [worker for worker in self._workers if worker.up]
        worker = choose([worker for worker in up if worker.url not in avoid] or up, prefix, samples)
        worker.load += samples
        try:
            yield worker
        finally:
            worker.load -= samples

    def drain(self) -> None:
        """Gives no worker any more, and lets go of all that wait for one."""
        self._draining = True
        self._some_up.set()

    def leave_out(self, worker: Worker, reason: str) -> None:
        """Sends no requests to the worker until it is healthy."""
        if not worker.up:
            return
        worker.up = False
        _LOG.warning("worker_down", worker=worker.url, reason=reason)
        self._publish()
        task = asyncio.get_running_loop().create_task(self._wait_until_healthy(worker))
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    async def has_died(self, worker: Worker, deaths: int, reason: str) -> bool:
        """Whether the worker has died since its count was ``deaths``; if it just did, it is left out.

        It may be up again by now: whoever asked first saw it dead, and the count tells the others.
        """
        if worker.deaths == deaths and not await self.is_healthy(worker) and worker.deaths == deaths:
            worker.deaths += 1
            self.leave_out(worker, reason)
        return worker.deaths != deaths

    def _publish(self) -> None:
        up = sum(worker.up for worker in self._workers)
        self._gauge.set(up)
        if up or self._draining:
            self._some_up.set()
        else:
            self._some_up.clear()
            _LOG.error("no_worker_up", workers=[worker.url for worker in self._workers])

    async def _wait_until_healthy(self, worker: Worker) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if await self.is_healthy(worker):
                break
        worker.up = True
        _LOG.info("worker_up", worker=worker.url)
        self._publish()

    async def is_healthy(self, worker: Worker) -> bool:
        """Whether the worker says that it is."""
        timeout = aiohttp.ClientTimeout(total=_HEALTH_TIMEOUT_S)
        try:
            async with self._session.get(f"{worker.url}/health", timeout=timeout) as response:
                return response.status == HTTPStatus.OK
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
