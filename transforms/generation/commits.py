"""Commits: records and the offsets of the prompts they finish, in one Kafka transaction.

    Write ──hand_over──► outbox ──► thread ──► transaction (records + offsets) ──► on_committed

A bundle that waited for its transaction would keep its runner busy all the while (Prism burns a core
for every open bundle), so the bundle ends when its records are handed over, and records of several
bundles that come meanwhile share a transaction. Beam's own bookkeeping plays no part in it: what is
finished lies in the pool until it is committed, and a process that dies before has answered it in
vain; the next one answers it again.
"""

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kafka import KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from schemas.config import RunConfig
from schemas.crash_points import crash_point
from schemas.dead_letters import DeadLetter
from schemas.errors import StateError
from schemas.identity import GroupId
from schemas.offsets import OffsetSet
from schemas.transactions import transaction
from transforms import metrics
from transforms.generation.outcome import OutputRecord


@dataclass(frozen=True)
class Progress:
    """What of the prompts is finished and committed, and which offsets hold no prompt."""

    committed: dict[int, OffsetSet]
    """By prompts partition."""
    gaps: Callable[[int], list[int]]
    """Of a partition: those found since the last call."""

    def is_committed(self, record: OutputRecord) -> bool:
        """Whether a record was committed before.

        Raises:
            StateError: some of its groups were and some were not.
        """
        committed = [group.offset in self.committed[group.partition] for group in record.groups]
        if any(committed) and not all(committed):
            raise StateError(f"a record mixes committed and new groups: {[str(group) for group in record.groups]}")
        return all(committed)

    def after(self, groups: Iterable[GroupId]) -> dict[int, OffsetSet]:
        """What will be finished with these groups, for the partitions that change."""
        offsets: dict[int, OffsetSet] = {}
        for group in groups:
            offsets.setdefault(group.partition, self.committed[group.partition].copy()).add(group.offset)
        for partition, finished in offsets.items():
            for gap in self.gaps(partition):
                finished.add(gap)
        return offsets


class Commits:
    """The transactions of one share. At most one is open.

    Args:
        config: of the run.
        share: of the prompts.
        producer: with the share's transactional id, fenced.
        progress: what was committed before, and is kept up to date.
        on_committed: called with the records of each transaction.
        on_error: called with what ended the commits for good.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is a neighbour of its own
        self,
        config: RunConfig,
        share: int,
        producer: KafkaProducer,
        progress: Progress,
        on_committed: Callable[[Sequence[OutputRecord]], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._config = config
        self._share = share
        self._producer = producer
        self._progress = progress
        self._on_committed = on_committed
        self._on_error = on_error
        self._lock = threading.Lock()
        self._outbox: queue.SimpleQueue[Sequence[OutputRecord]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=f"commits-{share}", daemon=True).start()

    def hand_over(self, records: Sequence[OutputRecord]) -> None:
        """Returns at once; the records are committed with whatever else waits."""
        self._outbox.put(records)

    def _work(self) -> None:
        while True:
            waiting = list(self._outbox.get())
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting += self._outbox.get_nowait()
            try:
                self.commit(waiting)
            except Exception:  # noqa: BLE001 - the pipeline was told, and ends with it
                return

    def commit(self, records: Sequence[OutputRecord]) -> None:
        """Writes records and the offsets of the prompts they finish in one transaction.

        Records that were committed before (a bundle that Beam tries again) are left out.

        Raises:
            FencedError: a newer pipeline holds this share.
            KafkaError, BrokerError: it failed; the process has to end, the next one finds out what is committed.
        """
        with self._lock:
            try:
                self._commit(records)
            except Exception as error:
                self._on_error(error)
                raise

    def _commit(self, records: Sequence[OutputRecord]) -> None:
        fresh = [record for record in records if not self._progress.is_committed(record)]
        if not fresh:
            return
        started = time.monotonic()
        offsets = self._progress.after(group for record in fresh for group in record.groups)
        self._transact(fresh, offsets)
        self._progress.committed.update(offsets)
        self._on_committed(fresh)
        _count(fresh, time.monotonic() - started)

    def _transact(self, records: Sequence[OutputRecord], offsets: Mapping[int, OffsetSet]) -> None:
        topics = self._config.topics
        positions = {
            TopicPartition(topics.prompts, partition): OffsetAndMetadata(finished.low, finished.encode(), -1)
            for partition, finished in offsets.items()
        }
        fenced = f"a newer rollout pipeline holds {topics.rollout_id(self._share)}; this one ends"
        with transaction(self._producer, fenced):
            for record in records:
                self._producer.send(record.topic, record.value, record.key, headers=list(record.headers))
            crash_point("record_sent")
            self._producer.send_offsets_to_transaction(positions, topics.rollout_group)
            crash_point("before_finalize")
        crash_point("after_finalize")


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
