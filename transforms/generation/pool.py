"""The pool: everything that one share of the prompts has in this process.

    prompts ──► Intake ──► Answerer ──► finished ──► (source, Score, Assemble) ──► commit ──► Kafka
               (thread)    (event loop)                                           (one transaction:
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
import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import aiohttp
import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from kafka.structs import OffsetAndMetadata

from schemas.config import RunConfig
from schemas.crash_points import crash_point
from schemas.dead_letters import DeadLetter
from schemas.errors import BrokerError, FencedError, StateError
from schemas.identity import GroupId
from schemas.offsets import OffsetSet
from schemas.transactions import is_fencing, open_producer
from transforms import metrics
from transforms.generation import engine
from transforms.generation.answer import Answerer
from transforms.generation.frontier import FrontierFollower
from transforms.generation.intake import Admitted, Intake
from transforms.generation.outcome import Outcome, OutputRecord
from transforms.generation.tokenizer import Tokenizer
from transforms.generation.workers import AbandonedError, Workers
from transforms.rewards import registry

_LOG = structlog.get_logger(__name__)
_POLL_MS: Final = 50
_WAKE_S: Final = 0.05
_PAUSE_S: Final = 0.5
_UNCOMMITTED_FACTOR: Final = 4
"""At most this multiple of ``max_in_flight`` is finished and not yet committed."""
_CONNECT_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Finished:
    """An outcome that waits for its commit."""

    outcome: Outcome
    prompt_at: datetime
    finished_s: float
    """Of the monotonic clock."""


class Pool:
    """One share of the prompts: what is in flight, what is finished, what is committed."""

    def __init__(self, config: RunConfig, share: int, tokenizer: Tokenizer) -> None:
        self._config = config
        self._share = share
        self._lock = threading.Lock()
        self._running: dict[GroupId, datetime] = {}
        self._finished: dict[GroupId, Finished] = {}
        self._ready: deque[GroupId] = deque()
        self._last_finished_s = time.monotonic()
        self._error: BaseException | None = None
        self._draining = threading.Event()
        self._wake = threading.Event()
        self._commit_lock = threading.Lock()
        # The first act, before any offset is read: it fences whoever held the share.
        self._producer = open_producer(config.kafka, config.topics.rollout_id(share))
        consumer, self._committed = _open_prompts(config, share)
        self._follower = FrontierFollower(config, self._wake.set)
        limit = config.rollout.max_in_flight
        self._intake = Intake(consumer, config.topics.prompts, self._committed, self._follower.frontier, limit)
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        threading.Thread(target=self._loop.run_forever, name=f"engines-{share}", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._open_engines(tokenizer), self._loop).result()
        self._follower.start()
        threading.Thread(target=self._take_prompts, name=f"prompts-{share}", daemon=True).start()

    async def _open_engines(self, tokenizer: Tokenizer) -> None:
        rollout = self._config.rollout
        timeout = aiohttp.ClientTimeout(total=rollout.request_timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        connector, traces = aiohttp.TCPConnector(limit=0), [engine.request_trace()]
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, trust_env=False, trace_configs=traces
        )
        self._workers = Workers(rollout.workers, self._session, self._share)
        self._answerer = Answerer(self._config, tokenizer, self._session, self._workers)

    async def _close_engines(self) -> None:
        for task in self._tasks:
            task.cancel()
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
        admitted = self._intake.take(self._room())
        if admitted:
            self._start(admitted)
        elif self._intake.waiting:
            self._wake.wait(_WAKE_S)
            self._wake.clear()

    def _room(self) -> int:
        limit = self._config.rollout.max_in_flight
        with self._lock:
            uncommitted = _UNCOMMITTED_FACTOR * limit - len(self._finished) - len(self._running)
            return max(0, min(limit - len(self._running), uncommitted))

    def _start(self, admitted: Sequence[Admitted]) -> None:
        with self._lock:
            self._running.update({prompt.record.id: prompt.record.written_at for prompt in admitted})
            self._measure()
        metrics.PROMPTS_TAKEN.inc(len(admitted))
        self._loop.call_soon_threadsafe(self._create_tasks, admitted)

    def _create_tasks(self, admitted: Sequence[Admitted]) -> None:
        for prompt in admitted:
            task = self._loop.create_task(self._answer(prompt))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, prompt: Admitted) -> None:
        outcome: Outcome | None = None
        try:
            outcome = await self._answerer.answer(prompt.record, prompt.min_version)
            crash_point("group_finished")
        except AbandonedError:
            _LOG.debug("prompt_abandoned", prompt=str(prompt.record.id))
        except Exception as error:  # noqa: BLE001 - handed to the pipeline, which ends with it
            self.fail(error)
        with self._lock:
            written_at = self._running.pop(prompt.record.id)
            if outcome is not None:
                self._finished[prompt.record.id] = Finished(outcome, written_at, time.monotonic())
                self._ready.append(prompt.record.id)
                self._last_finished_s = time.monotonic()
            self._measure()
        self._wake.set()

    def _measure(self) -> None:
        metrics.PROMPTS_IN_FLIGHT.labels(str(self._share)).set(len(self._running))
        metrics.GROUPS_UNCOMMITTED.labels(str(self._share)).set(len(self._finished))

    # ---- outcomes out: Beam's threads ---------------------------------------------------------------

    def offer_again(self) -> None:
        """Makes all that is finished and not committed ready to be taken: a new reader begins."""
        with self._lock:
            self._ready = deque(self._finished)

    def take(self, most: int) -> list[Finished]:
        """At most so many finished outcomes in order of completion; those that there are now.

        Raises:
            BaseException: what broke the pool.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
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
        """Whether nothing more will be finished or is ready."""
        with self._lock:
            return self._draining.is_set() and not self._running and not self._ready

    # ---- commit -------------------------------------------------------------------------------------

    def commit(self, records: Sequence[OutputRecord]) -> None:
        """Writes records and the offsets of the prompts they finish in one transaction.

        Records that were committed before (a bundle that Beam tries again) are left out.

        Raises:
            FencedError: a newer pipeline holds this share.
            KafkaError: the outcome is unknown; the process has to end, the next one finds out.
        """
        with self._commit_lock:
            fresh = [record for record in records if not self._is_committed(record)]
            if not fresh:
                return
            started = time.monotonic()
            offsets = self._next_offsets(group for record in fresh for group in record.groups)
            self._transact(fresh, offsets)
            self._forget(fresh, offsets)
            _count(fresh, time.monotonic() - started)

    def _is_committed(self, record: OutputRecord) -> bool:
        committed = [group.offset in self._committed[group.partition] for group in record.groups]
        if any(committed) and not all(committed):
            raise StateError(f"a record mixes committed and new groups: {[str(group) for group in record.groups]}")
        return all(committed)

    def _next_offsets(self, groups: Iterable[GroupId]) -> dict[int, OffsetSet]:
        offsets: dict[int, OffsetSet] = {}
        for group in groups:
            offsets.setdefault(group.partition, self._committed[group.partition].copy()).add(group.offset)
        for partition, finished in offsets.items():
            for gap in self._intake.gaps(partition):
                finished.add(gap)
        return offsets

    def _transact(self, records: Sequence[OutputRecord], offsets: Mapping[int, OffsetSet]) -> None:
        topic = self._config.topics.prompts
        positions = {
            TopicPartition(topic, partition): OffsetAndMetadata(finished.low, finished.encode(), -1)
            for partition, finished in offsets.items()
        }
        try:
            self._producer.begin_transaction()
            for record in records:
                self._producer.send(record.topic, record.value, record.key, headers=list(record.headers))
            crash_point("record_sent")
            self._producer.send_offsets_to_transaction(positions, self._config.topics.rollout_group)
            crash_point("before_finalize")
            self._producer.commit_transaction()
            crash_point("after_finalize")
        except KafkaError as error:
            if not is_fencing(error):
                with contextlib.suppress(KafkaError):
                    self._producer.abort_transaction()
                self.fail(error)
                raise
            transactional_id = self._config.topics.rollout_id(self._share)
            fenced = FencedError(f"a newer rollout pipeline holds {transactional_id}; this one ends")
            self.fail(fenced)
            raise fenced from error

    def _forget(self, records: Sequence[OutputRecord], offsets: Mapping[int, OffsetSet]) -> None:
        now = time.monotonic()
        with self._lock:
            self._committed.update(offsets)
            for group in (group for record in records for group in record.groups):
                finished = self._finished.pop(group, None)
                if finished is not None:
                    metrics.COMMIT_LATENCY_SECONDS.observe(now - finished.finished_s)
            self._measure()
        self._wake.set()

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
        _LOG.error("pool_failed", share=self._share, error=repr(error))

    def drain(self) -> None:
        """Takes no more prompts; what engines are answering is finished and committed. Returns at once."""
        self._draining.set()
        self._follower.stop()
        self._loop.call_soon_threadsafe(self._workers.drain)

    def stop(self) -> None:
        """Takes no more prompts and lets go of what is in flight. The end of the process closes the rest."""
        self.drain()
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._close_engines(), self._loop)


def _open_prompts(config: RunConfig, share: int) -> tuple[KafkaConsumer, dict[int, OffsetSet]]:
    """A consumer for the share's partitions, and what is finished of them."""
    consumer = KafkaConsumer(**{**config.kafka.consumer_options(), "group_id": config.topics.rollout_group})
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


def _count(records: Sequence[OutputRecord], commit_s: float) -> None:
    metrics.COMMIT_SECONDS.observe(commit_s)
    metrics.GROUPS_WRITTEN.inc(sum(len(record.groups) for record in records))
    for topic, count in Counter(record.topic for record in records).items():
        metrics.RECORDS_WRITTEN.labels(topic).inc(count)
    for record in records:
        metrics.BYTES_WRITTEN.labels(record.topic).inc(len(record.value))
        if record.topic.endswith(".dead-letters"):
            letter = DeadLetter.decode(record.value)
            metrics.DEAD_LETTERS.labels(letter.stage, letter.reason).inc()


_POOLS: dict[tuple[str, int], Pool] = {}
_LOCK = threading.Lock()
_DRAIN = threading.Event()


def pool_of(config: RunConfig, share: int) -> Pool:
    """This process's pool of a share; opened at the first call."""
    key = (config.model_dump_json(), share)
    with _LOCK:
        if key not in _POOLS:
            registry.load(config.rewards.modules)
            _POOLS[key] = Pool(config, share, Tokenizer.load(config.model.path))
            if _DRAIN.is_set():
                _POOLS[key].drain()
        return _POOLS[key]


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
