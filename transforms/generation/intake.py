"""Prompts from Kafka: those below the admission frontier that are not finished yet."""

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from kafka import TopicPartition

from schemas import traces
from schemas.consumers import read_only
from schemas.identity import GroupId
from schemas.offsets import OffsetSet
from transforms.generation.frontier import Frontier
from transforms.generation.request import PromptRecord


class Admitted(NamedTuple):
    """A prompt that may be answered, and by which weight version at least."""

    record: PromptRecord
    min_version: int


class Intake:
    """A view of the consumer. One thread uses it; :meth:`gaps` may be called from any.

    Args:
        consumer: a consumer that nothing else uses.
        topic: the prompts topic.
        finished: for each partition what was committed before the start.
        frontier: what is admitted.
        buffered: most prompts of a partition that wait here.
    """

    def __init__(
        self, consumer: Any, topic: str, finished: Mapping[int, OffsetSet], frontier: Frontier, buffered: int
    ) -> None:
        self._consumer = consumer
        self._topic = topic
        self._finished = {partition: offsets.copy() for partition, offsets in finished.items()}
        self._frontier = frontier
        self._buffered = buffered
        self._buffers: dict[int, deque[PromptRecord]] = {partition: deque() for partition in sorted(finished)}
        self._next = {partition: offsets.low for partition, offsets in finished.items()}
        self._gaps: dict[int, list[int]] = {partition: [] for partition in finished}
        self._gaps_lock = threading.Lock()
        self._turn = 0

    def poll(self, timeout_ms: int) -> None:
        """Fetches what has come, from partitions whose buffers are not full; waits at most the time."""
        wanted = {TopicPartition(self._topic, p) for p, buffer in self._buffers.items() if len(buffer) < self._buffered}
        read_only(self._consumer, wanted, self._next)
        if not wanted:
            return
        for messages in self._consumer.poll(timeout_ms, max_records=self._buffered).values():
            self._accept(messages)

    def _accept(self, messages: Iterable[Any]) -> None:
        for message in messages:
            partition, offset = message.partition, message.offset
            with self._gaps_lock:
                self._gaps[partition].extend(range(self._next[partition], offset))
            self._next[partition] = offset + 1
            if offset not in self._finished[partition]:
                written_at = datetime.fromtimestamp(message.timestamp / 1000, UTC)
                prompt = PromptRecord(
                    GroupId(partition, offset), message.value, written_at, trace=traces.begin_at(message)
                )
                self._buffers[partition].append(prompt)

    def take(self, room: int) -> list[Admitted]:
        """At most ``room`` admitted prompts; the partitions take turns."""
        taken: list[Admitted] = []
        partitions = list(self._buffers)
        empty = 0
        while len(taken) < room and empty < len(partitions):
            partition = partitions[self._turn % len(partitions)]
            self._turn += 1
            buffer = self._buffers[partition]
            if buffer and buffer[0].id.offset < self._frontier.end(partition):
                record = buffer.popleft()
                taken.append(Admitted(record, self._frontier.min_version(*record.id)))
                empty = 0
            else:
                empty += 1
        return taken

    @property
    def waiting(self) -> int:
        """Prompts that were fetched and not taken."""
        return sum(map(len, self._buffers.values()))

    def gaps(self, partition: int) -> list[int]:
        """Offsets that hold no prompt (transaction markers) and were found since the last call."""
        with self._gaps_lock:
            found, self._gaps[partition] = self._gaps[partition], []
            return found
