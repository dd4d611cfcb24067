"""The pool: everything that one share of the prompts has in this process.

    prompts ──► Intake ──► Answerer ──► finished ──► (source, Score, Assemble) ──► Commits ──► Kafka
               (thread)    (event loop)                                            (thread; one transaction:
                                                                                    records + offsets)

There is one pool for each share in a process, however often Beam builds readers and writers: they
all look at the same one, so no prompt is answered twice in a process. What is committed is, for each
prompts partition, the low-water mark and the set finished beyond it (:class:`OffsetSet`), in the
transaction that also holds the records. A process that dies loses only answers that were not
committed; the next one asks for them again.

This module must be imported, never run as ``__main__``: Beam pickles ``__main__`` by value, which
would copy the registry of pools.
"""

import asyncio
import gc
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
import uvloop
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from schemas import traces
from schemas.config import RunConfig
from schemas.crash_points import crash_point
from schemas.errors import BrokerError, StateError
from schemas.identity import GroupId
from schemas.offsets import OffsetSet
from schemas.trace_context import TraceContext
from schemas.transactions import open_producer
from transforms import metrics
from transforms.environments import registry as environments
from transforms.generation import engine, prompt_traces
from transforms.generation.answer import Answerer
from transforms.generation.commits import Commits, Progress
from transforms.generation.discovery import Discovery
from transforms.generation.frontier import FrontierFollower
from transforms.generation.intake import Admitted, Intake
from transforms.generation.occupancy import Occupancy
from transforms.generation.outcome import Outcome, OutputRecord
from transforms.generation.tokenizer import Tokenizer
from transforms.generation.workers import AbandonedError, Workers
from transforms.rewards import registry
from transforms.score import Scorer, scorer_of

_LOG = structlog.get_logger(__name__)
_POLL_MS: Final = 50
_WAKE_S: Final = 0.05
_PAUSE_S: Final = 0.5
_LAST_CALL_S: Final = 15.0
"""How long judges and reward models may take once the pool drains."""
_UNCOMMITTED_FACTOR: Final = 4
"""At most this multiple of ``max_in_flight`` is finished and not yet committed."""
_FETCH_BYTES: Final = 1 << 17
"""Of a prompts partition at a time (a longer prompt comes all the same). What has no room in :class:`Intake` is
fetched again, and a backlog in large pieces kept its thread for a third of a second."""
_COLLECT_AFTER_OBJECTS: Final = 50_000
"""Containers that are made before the youngest generation is collected; Python's 700 are one group's."""


@dataclass(frozen=True, slots=True)
class Finished:
    """An outcome that waits for its commit."""

    outcome: Outcome
    prompt_at: datetime
    finished_s: float
    """Of the monotonic clock."""
    trace: TraceContext | None = None
    """The span of the prompt as a whole; null where nothing is traced."""


class Pool:
    """One share of the prompts: what is in flight, what is finished, what is committed."""

    def __init__(self, config: RunConfig, share: int, tokenizer: Tokenizer, scorer: Scorer) -> None:
        self._config = config
        self._share = share
        self._scorer = scorer
        self._lock = threading.Lock()
        self._some_ready = threading.Condition(self._lock)
        self._running: dict[GroupId, datetime] = {}
        self._finished: dict[GroupId, Finished] = {}
        self._ready: deque[GroupId] = deque()
        self._handed_over: dict[GroupId, float] = {}
        """When, in seconds since 1970."""
        self._unjudged: set[GroupId] = set()
        """Finished, and waiting for a judge or a reward model."""
        self._taken_s = 0.0
        self.bundle_s = 0.0
        """How long the last bundle took from its first look to its records."""
        self._last_finished_s = time.monotonic()
        self._error: BaseException | None = None
        self._draining = threading.Event()
        self._wake = threading.Event()
        self._occupancy = Occupancy(config.rollout.max_in_flight, share)
        self._in_flight_gauge = metrics.PROMPTS_IN_FLIGHT.labels(str(share))
        self._uncommitted_gauge = metrics.GROUPS_UNCOMMITTED.labels(str(share))
        # The first act, before any offset is read: it fences whoever held the share.
        producer = open_producer(config.kafka, config.topics.rollout_id(share))
        consumer, committed = _open_prompts(config, share)
        self._follower = FrontierFollower(config, self._wake.set)
        limit = config.rollout.max_in_flight
        self._intake = Intake(consumer, config.topics.prompts, committed, self._follower.frontier, limit)
        self.commits = Commits(config, share, producer, Progress(committed, self._intake.gaps), self._forget, self.fail)
        self._loop = uvloop.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        threading.Thread(target=self._loop.run_forever, name=f"engines-{share}", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._open_engines(tokenizer), self._loop).result()
        self._discovery = Discovery(config, self._workers, self._loop)
        self._follower.start()
        threading.Thread(target=self._take_prompts, name=f"prompts-{share}", daemon=True).start()

    async def _open_engines(self, tokenizer: Tokenizer) -> None:
        self._last_call: asyncio.Future[None] = self._loop.create_future()
        rollout = self._config.rollout
        self._session = engine.open_session(rollout.request_timeout_s, self._config.worker.key())
        self._workers = Workers(rollout.workers, self._session, self._share, rollout.frozen_after_s)
        self._answerer = Answerer(self._config, tokenizer, self._session, self._workers)

    async def _close_engines(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._workers.close()
        await self._answerer.close()
        await self._session.close()
        self._loop.stop()

    # ---- prompts in: a thread of its own ------------------------------------------------------------

    def _take_prompts(self) -> None:
        while not self._draining.is_set():
            try:
                self._take_some()
            except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
                self.fail(StateError(f"prompts that were never answered are gone from their topic: {error}"))
                return
            except KafkaError as error:
                _LOG.error("prompts_not_read", share=self._share, error=repr(error))
                self._draining.wait(_PAUSE_S)
            except Exception as error:  # noqa: BLE001 - handed to the pipeline, which ends with it
                self.fail(error)
                return

    def _take_some(self) -> None:
        self._intake.poll(0 if self._intake.waiting else _POLL_MS)
        room, back_pressure = self._room()
        admitted = self._intake.take(room)
        if admitted:
            self._start(admitted)
        self._explain(full=len(admitted) == room, back_pressure=back_pressure)
        if not admitted and self._intake.waiting:
            self._wake.wait(_WAKE_S)
            self._wake.clear()

    def _room(self) -> tuple[int, bool]:
        """How many prompts may be taken, and whether it is commits that they wait for.

        Prompts that wait for their trial are with no worker, so they take no room from others.
        """
        limit = self._config.rollout.max_in_flight
        with self._lock:
            free = limit - len(self._running) + self._workers.suspects_waiting
            uncommitted = _UNCOMMITTED_FACTOR * limit - len(self._finished) - len(self._running)
        return max(0, min(free, uncommitted)), uncommitted < free

    def _explain(self, *, full: bool, back_pressure: bool) -> None:
        """Says why slots are empty, if they are."""
        with self._lock:
            self._occupancy.advance()
            if not self._workers.some_up:
                self._occupancy.explain("no_worker")
            elif back_pressure:
                self._occupancy.explain("back_pressure")
            elif not full:
                self._occupancy.explain("admission" if self._intake.waiting else "no_prompts")

    def _start(self, admitted: Sequence[Admitted]) -> None:
        with self._lock:
            self._running.update({prompt.record.id: prompt.record.written_at for prompt in admitted})
            self._measure()
        metrics.PROMPTS_TAKEN.inc(len(admitted))
        now = datetime.now(UTC)
        for prompt in admitted:
            metrics.QUEUE_SECONDS.observe(max(0.0, (now - prompt.record.written_at).total_seconds()))
            prompt_traces.record_queue(prompt.record, now)
        self._loop.call_soon_threadsafe(self._create_tasks, admitted)

    def _create_tasks(self, admitted: Sequence[Admitted]) -> None:
        for prompt in admitted:
            task = self._loop.create_task(self._answer(prompt))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, prompt: Admitted) -> None:
        outcome: Outcome | None = None
        judged: Future[Any] | None = None
        try:
            outcome = await self._answerer.answer(prompt.record, prompt.min_version)
            judged = self._scorer.begin(outcome)
            crash_point("group_finished")
        except AbandonedError:
            _LOG.debug("prompt_abandoned", prompt=str(prompt.record.id))
        except Exception as error:  # noqa: BLE001 - handed to the pipeline, which ends with it
            self.fail(error)
        with self._lock:
            written_at = self._running.pop(prompt.record.id)
            if outcome is not None:
                self._finished[prompt.record.id] = Finished(outcome, written_at, time.monotonic(), prompt.record.trace)
                self._last_finished_s = time.monotonic()
                if judged is None:
                    self._make_ready(prompt.record.id)
                else:
                    self._unjudged.add(prompt.record.id)
            self._measure()
        self._wake.set()
        if outcome is not None and judged is not None:
            await self._await_judgement(prompt.record.id, outcome, asyncio.wrap_future(judged))

    def _make_ready(self, group: GroupId) -> None:
        self._ready.append(group)
        self._some_ready.notify()

    async def _await_judgement(self, group: GroupId, outcome: Outcome, judged: "asyncio.Future[Any]") -> None:
        """Holds a group back from bundles until it is judged, or lets go of it once the pool has to end."""
        await asyncio.wait({judged, self._last_call}, return_when=asyncio.FIRST_COMPLETED)
        with self._lock:
            self._unjudged.discard(group)
            if judged.done():
                self._make_ready(group)
            else:  # nothing of it is committed: whoever opens the share next asks again
                del self._finished[group]
                self._scorer.forget(outcome)
            self._measure()

    def _measure(self) -> None:
        self._occupancy.fill(len(self._running))
        self._in_flight_gauge.set(len(self._running))
        self._uncommitted_gauge.set(len(self._finished))

    # ---- outcomes out: Beam's threads ---------------------------------------------------------------

    def offer_again(self) -> None:
        """Makes all that is finished and not handed over ready to be taken: a new reader begins."""
        with self._lock:
            held = self._handed_over.keys() | self._unjudged
            self._ready = deque(group for group in self._finished if group not in held)

    def take(self, most: int, wait_s: float = 0.0) -> list[Finished]:
        """At most so many finished outcomes in order of completion; waits at most the time for the first.

        Raises:
            BaseException: what broke the pool.
        """
        with self._lock:
            self._some_ready.wait_for(lambda: self._ready or self._error is not None, wait_s)
            if self._error is not None:
                raise self._error
            self._taken_s = time.monotonic()
            return [self._finished[self._ready.popleft()] for _ in range(min(most, len(self._ready)))]

    def idle_s(self) -> float:
        """How long nothing has been finished."""
        return time.monotonic() - self._last_finished_s

    def oldest_prompt_at(self) -> datetime | None:
        """When the oldest prompt that is not committed was written; None if there is none."""
        with self._lock:
            finished = (finished.prompt_at for finished in self._finished.values())
            return min((*self._running.values(), *finished), default=None)

    def is_drained(self) -> bool:
        """Whether nothing more will be finished, and all that was is committed."""
        with self._lock:
            return self._draining.is_set() and not self._running and not self._finished

    # ---- commit -------------------------------------------------------------------------------------

    def hand_over(self, records: Sequence[OutputRecord]) -> None:
        """Takes a bundle's records to be committed soon; until then they are not offered again.

        Raises:
            BaseException: what broke the pool.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            fresh = [record for record in records if not self._handed_over.keys() >= set(record.groups)]
            now_s = time.time()
            self._handed_over.update((group, now_s) for record in fresh for group in record.groups)
            self.bundle_s = time.monotonic() - self._taken_s
        self.commits.hand_over(fresh)

    def _forget(self, records: Sequence[OutputRecord]) -> None:
        now = time.monotonic()
        committed: list[prompt_traces.Committed] = []
        with self._lock:
            for record in records:
                for group in record.groups:
                    handed_over_s = self._handed_over.pop(group, None)
                    finished = self._finished.pop(group, None)
                    if finished is not None:
                        metrics.COMMIT_LATENCY_SECONDS.observe(now - finished.finished_s)
                        committed.append(prompt_traces.Committed(finished, record, handed_over_s))
            self._measure()
        self._wake.set()
        prompt_traces.record_commits(committed)

    # ---- the end ------------------------------------------------------------------------------------

    @property
    def error(self) -> BaseException | None:
        """What broke the pool; None while it works."""
        return self._error

    def fail(self, error: BaseException) -> None:
        """Ends the pool: the next look at it raises ``error``."""
        with self._lock:
            if self._error is not None:
                return
            self._error = error
            self._some_ready.notify()
        _LOG.error("pool_failed", share=self._share, error=repr(error))

    def drain(self) -> None:
        """Takes no more prompts; what engines are answering is finished, judged and committed. Returns at once.

        Judges have ``_LAST_CALL_S``: what they have not judged by then is let go of.
        """
        self._draining.set()
        self._follower.stop()
        self._discovery.stop()
        self._loop.call_soon_threadsafe(self._workers.drain)
        self._loop.call_soon_threadsafe(self._loop.call_later, _LAST_CALL_S, self._call_last)

    def _call_last(self) -> None:
        if not self._last_call.done():
            self._last_call.set_result(None)

    def stop(self) -> None:
        """Takes no more prompts and lets go of what is in flight. The end of the process closes the rest."""
        self.drain()
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._close_engines(), self._loop)


def _open_prompts(config: RunConfig, share: int) -> tuple[KafkaConsumer, dict[int, OffsetSet]]:
    """A consumer for the share's partitions, and what is finished of them."""
    own = {"group_id": config.topics.rollout_group, "max_partition_fetch_bytes": _FETCH_BYTES}
    consumer = KafkaConsumer(**{**config.kafka.consumer_options(), **own})
    partitions = consumer.partitions_for_topic(config.topics.prompts)
    if not partitions:
        raise BrokerError(f"topic {config.topics.prompts} does not exist at {config.kafka.bootstrap}")
    mine = [TopicPartition(config.topics.prompts, p) for p in sorted(partitions) if p % config.rollout.shares == share]
    finished = {partition.partition: _read_committed(consumer, partition) for partition in mine}
    _LOG.info("share_opened", share=share, finished={p: offsets.low for p, offsets in finished.items()})
    return consumer, finished


def _read_committed(consumer: KafkaConsumer, partition: TopicPartition) -> OffsetSet:
    committed = consumer.committed(partition, metadata=True)
    if committed is None or committed.offset < 0:
        return OffsetSet(consumer.beginning_offsets([partition])[partition])
    try:
        return OffsetSet.decode(committed.offset, committed.metadata or "")
    except ValueError as error:
        raise StateError(f"{partition}: {error}; another program committed offsets to this consumer group") from error


_POOLS: dict[tuple[str, int], Pool] = {}
_LOCK = threading.Lock()
_DRAIN = threading.Event()


def pool_of(config: RunConfig, share: int) -> Pool:
    """This process's pool of a share; opened at the first call."""
    key = (config.model_dump_json(), share)
    with _LOCK:
        if key not in _POOLS:
            traces.open_tracing(config.tracing, config.name, "rollout")
            registry.load(config.rewards.modules)
            environments.load(config.rollout.environments)
            _collect_rarely()
            scorer = scorer_of(config.rewards, config.model.path)
            _POOLS[key] = Pool(config, share, Tokenizer.load(config.model.path), scorer)
            if _DRAIN.is_set():
                _POOLS[key].drain()
        return _POOLS[key]


def _collect_rarely() -> None:
    """Keeps Python's cyclic collector from walking all of Beam and the tokenizer once for every few groups.

    What is alive now stays for as long as the process; answers come and go by their reference counts.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER_OBJECTS, 20, 20)


def all_pools() -> list[Pool]:
    """The pools of this process."""
    return list(_POOLS.values())


def stop_all() -> None:
    """Stops every pool of this process at once: the pipeline has ended."""
    for pool in all_pools():
        pool.stop()


def drain_all() -> None:
    """Drains every pool of this process, those too that are opened later; a signal handler calls it."""
    _DRAIN.set()
    for pool in all_pools():
        pool.drain()


def first_error(pools: Iterable[Pool]) -> BaseException | None:
    """What broke the first broken pool."""
    return next((pool.error for pool in pools if pool.error is not None), None)
