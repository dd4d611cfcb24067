"""Which worker answers which request, and which workers there are.

    rollout.workers ──┐                ┌── /health, every few seconds: up, down or frozen
    {run}.workers ────┴──► Workers ◄───┘
                              └──► taken ──► one worker, for one request

A request goes to the worker that its prefix belongs to, as long as that worker is not busier than
the others (so that prompts with one beginning share a worker's prefix cache, and no worker is
flooded by them); what a worker may hold follows how fast it answers. A worker that does not answer is
left out until its ``/health`` is good again. While none is up, requests wait: they do not fail.

    ended, refused    left out; what was in flight under a death is tried again under quarantine
    frozen            left out; its requests go to others at once, as if they had never begun
    leaving           gets no more; what it still answers counts, what it breaks off goes to others
"""

import asyncio
import contextlib
import enum
import hashlib
import math
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, TypeVar

import aiohttp
import structlog

from schemas.errors import EngineLost, EngineUnavailable
from schemas.workers import WorkerEntry
from transforms import metrics
from transforms.generation.pace import Pace, speeds
from transforms.generation.quarantine import Case, Quarantine

T = TypeVar("T")

_LOG = structlog.get_logger(__name__)
_PREFIX_TOKENS: Final = 64
"""How many leading tokens decide which worker a prompt belongs to."""
_OVERLOAD: Final = 1.25
"""A worker takes at most this multiple of its part of the load before others help."""
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_HEALTH_TIMEOUT_S: Final = 5.0
_SILENT_LOOKS: Final = 3
"""A worker whose health is silent so often in a row is frozen; one look may meet a busy moment."""
_FORGET_S: Final = 30.0
"""A worker that is down and was announced longer ago than this is forgotten."""
_REFRESH_S: Final = 0.1
"""How old the workers' speeds may be."""


class AbandonedError(Exception):
    """The pipeline ends before this prompt was given to a worker; the next one will answer it."""


class Health(enum.Enum):
    """What one look at a worker says."""

    GOOD = enum.auto()
    BAD = enum.auto()
    """It refuses the connection, or says that it is not healthy."""
    SILENT = enum.auto()


def _seed(url: str) -> int:
    return int.from_bytes(hashlib.blake2b(url.encode(), digest_size=7).digest())


@dataclass(slots=True, eq=False)
class Worker:
    """One vLLM server as the pipeline sees it."""

    url: str
    up: bool = True
    load: int = 0
    """Samples that it is answering for this pool."""
    deaths: int = 0
    """How often it went away while it was answering."""
    listed: bool = True
    """Whether the configuration names it; others are forgotten when they end."""
    leaving: bool = False
    """It said that it will stop."""
    gone: bool = False
    """It is frozen or forgotten: what it was asked will not be answered."""
    max_num_seqs: int | None = None
    """Samples that its engine computes at once; null if it never said."""
    speed: float = 1.0
    """Of its answers, relative to the mean of all workers."""
    pace: Pace = field(default_factory=Pace)
    silent_looks: int = 0
    heard_s: float = 0.0
    """When it was last announced, of the event loop's clock."""
    seed: int = field(init=False)
    """Of its place in the order that a prefix draws."""
    left_out: asyncio.Event = field(default_factory=asyncio.Event)
    _guards: set[asyncio.Timeout] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.seed = _seed(self.url)

    async def guard(self, answer: Awaitable[T]) -> T:
        """Awaits an answer for as long as the worker can still give it.

        Raises:
            EngineUnavailable: it froze or was forgotten, or broke off after saying that it leaves. None
                of these is a death, so the request is nobody's fault and may go to another worker.
        """
        clock, answered = asyncio.get_running_loop().time, False
        scope = asyncio.timeout(0 if self.gone else None)
        self._guards.add(scope)
        self.pace.begin(clock())
        try:
            async with scope:
                result = await answer
            answered = True
            self.silent_looks = 0
            return result
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise EngineUnavailable(f"{self.url} has stopped answering") from error
        except EngineLost as error:
            if not self.leaving:
                raise
            raise EngineUnavailable(f"{self.url} ended as it had announced") from error
        finally:
            self.pace.end(clock(), answered=answered)
            self._guards.discard(scope)

    def give_up(self) -> None:
        """Ends the wait for everything that it was asked."""
        self.gone = True
        for scope in self._guards:
            if not scope.expired():
                scope.reschedule(0)


def choose(workers: Sequence[Worker], prefix: Sequence[int], samples: int, prefer: str | None = None) -> Worker:
    """The worker for a prompt that begins with ``prefix``.

    Of those that stay below the allowed load it is the preferred one, or else the first in the order
    that the prefix draws (rendezvous hashing with bounded loads). The allowed load is the worker's part
    of all load, by its speed, and some more; it never exceeds what its engine computes at once.
    """
    load_s = (samples + sum([worker.load for worker in workers])) / sum([worker.speed for worker in workers])
    key, first, first_rank = hash(tuple(prefix[:_PREFIX_TOKENS])), None, 0
    for worker in workers:
        allowed = math.ceil(_OVERLOAD * load_s * worker.speed)
        if worker.max_num_seqs is not None:
            allowed = min(allowed, worker.max_num_seqs)
        if worker.load + samples > max(allowed, samples):
            continue
        if worker.url == prefer:
            return worker
        rank = hash((worker.seed, key))
        if first is None or rank > first_rank:
            first, first_rank = worker, rank
    return first or min(workers, key=lambda worker: worker.load / worker.speed)


class Workers:
    """All workers of a pipeline. Lives in one event loop.

    Args:
        urls: those that the configuration names.
        session: through which they are asked.
        share: of the prompts, for the figures.
        frozen_after_s: how long a health check may be silent.

    Attributes:
        quarantine: of the prompts that are tried at them.
    """

    def __init__(
        self, urls: Sequence[str], session: aiohttp.ClientSession, share: int, frozen_after_s: float = 10.0
    ) -> None:
        self.quarantine = Quarantine()
        self._session = session
        self._look_s = frozen_after_s / _SILENT_LOOKS
        self._workers: dict[str, Worker] = {}
        self._up: list[Worker] = []
        self._some_up = asyncio.Event()
        self._gauge = metrics.WORKERS_UP.labels(str(share))
        self._watches: set[asyncio.Task[None]] = set()
        self._draining = False
        self._refreshed_s = 0.0
        for url in urls:
            self._add(Worker(url.rstrip("/")))
        self._publish()

    # ---- requests -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def taken(
        self,
        prefix: Sequence[int],
        samples: int,
        avoid: Collection[str],
        prefer: str | None = None,
        case: Case | None = None,
    ) -> AsyncIterator[Worker]:
        """A worker for one request, waiting while none is up.

        Args:
            prefix: the prompt's token ids.
            samples: how many answers the request asks for.
            avoid: workers that failed this prompt; taken only if there is no other.
            prefer: who answered the conversation's last turn, by url; taken unless it is down or overloaded.
            case: what is known against the prompt; on trial it is the only suspect at its worker.

        Raises:
            AbandonedError: the pipeline ends; only what is being answered is still finished.
        """
        up = await self._wait_for_some(case)
        self._refresh_speeds()
        choice = [worker for worker in up if worker.url not in avoid] if avoid else up
        worker = choose(choice or up, prefix, samples, prefer)
        if case is not None:
            self.quarantine.seat(case, worker.url)
        worker.load += samples
        try:
            yield worker
        finally:
            worker.load -= samples

    async def _wait_for_some(self, case: Case | None) -> list[Worker]:
        """The workers that may be asked for the prompt; at least one."""
        while True:
            await self._some_up.wait()
            if self._draining:
                raise AbandonedError
            if case is None or not self.quarantine.is_on_trial(case):
                return self._up
            occupied = self.quarantine.occupied
            if free := [worker for worker in self._up if worker.url not in occupied]:
                return free
            await asyncio.sleep(_FIRST_PAUSE_S)  # a worker went down just after the turn was given

    def _refresh_speeds(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._refreshed_s < _REFRESH_S:
            return
        self._refreshed_s = now_s
        for worker in self._up:
            worker.pace.advance(now_s)
        for worker, speed in zip(self._up, speeds([worker.pace for worker in self._up]), strict=True):
            worker.speed = speed

    @property
    def suspects_waiting(self) -> int:
        """Prompts in quarantine that wait for their turn: no worker has them. May be read from any thread."""
        return self.quarantine.waiting

    @property
    def some_up(self) -> bool:
        """Whether any worker takes requests. May be read from any thread."""
        return self._some_up.is_set()

    def drain(self) -> None:
        """Gives no worker any more, and lets go of all that wait for one."""
        self._draining = True
        self._some_up.set()

    def close(self) -> None:
        """Looks at no worker any more."""
        for watch in self._watches:
            watch.cancel()

    # ---- who comes and goes -------------------------------------------------------------------------

    def heard(self, entry: WorkerEntry) -> None:
        """A worker announced itself, or said that it leaves."""
        worker = self._workers.get(entry.url)
        if worker is None:
            if entry.state == "leaving":
                return
            worker = self._add(Worker(entry.url, up=False, listed=False))
            _LOG.info("worker_discovered", worker=entry.url, version=entry.version)
        worker.heard_s, worker.max_num_seqs = asyncio.get_running_loop().time(), entry.max_num_seqs
        if entry.state == "leaving" and not worker.leaving:
            worker.leaving = True
            _LOG.info("worker_leaving", worker=entry.url, samples_in_flight=worker.load)
            self._set_up(worker, up=False)
        elif entry.state == "up":
            worker.leaving = False

    def _add(self, worker: Worker) -> Worker:
        self._workers[worker.url] = worker
        watch = asyncio.get_running_loop().create_task(self._watch(worker))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        return worker

    def leave_out(self, worker: Worker, reason: str) -> None:
        """Sends no requests to the worker until it is healthy."""
        if worker.up:
            _LOG.warning("worker_down", worker=worker.url, reason=reason)
            self._set_up(worker, up=False)

    async def has_died(self, worker: Worker, deaths: int, reason: str) -> bool:
        """Whether the worker has died since its count was ``deaths``; if it just did, it is left out.

        It may be up again by now: whoever asked first saw it dead, and the count tells the others.
        """
        if worker.deaths == deaths and not await self.is_healthy(worker) and worker.deaths == deaths:
            worker.deaths += 1
            self.leave_out(worker, reason)
        return worker.deaths != deaths

    def _set_up(self, worker: Worker, *, up: bool) -> None:
        worker.up = up
        if up:
            worker.gone = False
            worker.pace.forget()
            worker.left_out.clear()
        else:
            worker.left_out.set()
        self._publish()

    def _publish(self) -> None:
        self._up = [worker for worker in self._workers.values() if worker.up]
        self._gauge.set(len(self._up))
        self.quarantine.set_rooms(len(self._up))
        if self._up or self._draining:
            self._some_up.set()
        elif not self._workers:
            self._some_up.clear()
            _LOG.warning("no_worker_known", waits_for="a worker that announces itself: start one with asyncflow worker")
        elif self._some_up.is_set():
            self._some_up.clear()
            _LOG.error("no_worker_up", workers=list(self._workers))

    # ---- health -------------------------------------------------------------------------------------

    async def _watch(self, worker: Worker) -> None:
        """Looks at a worker for as long as it is known: regularly while it is up, else until it is healthy."""
        pause_s = _FIRST_PAUSE_S
        while self._workers.get(worker.url) is worker and not self._session.closed:
            self._judge(worker, await self._look(worker, self._look_s))
            if worker.up and worker.silent_looks:
                continue  # this look took its time already
            if worker.up:
                pause_s = _FIRST_PAUSE_S
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(worker.left_out.wait(), self._look_s)
            if not worker.up:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _judge(self, worker: Worker, health: Health) -> None:
        worker.silent_looks = worker.silent_looks + 1 if health is Health.SILENT else 0
        if health is Health.GOOD:
            if not worker.up and not worker.leaving:
                _LOG.info("worker_up", worker=worker.url)
                self._set_up(worker, up=True)
            return
        if health is Health.BAD:
            self.leave_out(worker, "its /health is not good")
        elif worker.silent_looks >= _SILENT_LOOKS and not worker.gone:
            self.leave_out(worker, "its /health is silent")
            worker.give_up()
        self._forget(worker)

    def _forget(self, worker: Worker) -> None:
        """What a worker that ended as it had announced, or is not announced any more, leaves behind."""
        if worker.up or worker.load:
            return
        unheard_s = asyncio.get_running_loop().time() - worker.heard_s
        if worker.listed:
            worker.leaving = False
        elif worker.leaving or unheard_s > _FORGET_S:
            _LOG.info("worker_forgotten", worker=worker.url)
            worker.give_up()
            del self._workers[worker.url]
            self._publish()

    async def is_healthy(self, worker: Worker) -> bool:
        """Whether the worker says that it is."""
        return await self._look(worker, _HEALTH_TIMEOUT_S) is Health.GOOD

    async def _look(self, worker: Worker, timeout_s: float) -> Health:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.get(f"{worker.url}/health", timeout=timeout, allow_redirects=False) as response:
                return Health.GOOD if response.status == HTTPStatus.OK else Health.BAD
        except TimeoutError:
            return Health.SILENT
        except (aiohttp.ClientError, OSError):
            return Health.BAD
