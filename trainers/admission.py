"""How many prompts may be generated: the learner is the only one who moves the frontier.

    admitted ≤ finished + parked + (1 + max_staleness) * groups_per_step

where finished = trained + dropped + dead letters, and parked = answered and waiting for feedback: people take
their time, and meanwhile other prompts are trained. A full step trains groups_per_step groups, so this is
the bound of the design; a step that trains fewer prompts admits fewer, and what is under way never grows.
Groups that are no prompts were never admitted and count nowhere.

Offsets of the prompts topic have gaps (transaction markers), so real records are walked. They are
taken in turn from the partitions in which prompts wait: one poll may bring records of one partition
only, so each queue is filled by itself and read ahead no further than it has room.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from kafka import TopicPartition

from schemas.consumers import read_only
from trainers.log import assign, read_to_end

_QUEUE: Final = 256
"""A partition is read while fewer of its offsets than this are known ahead."""

Skip = Callable[[int, int, int], None]


class Admission:
    """Walks the prompts topic.

    Attributes:
        frontier: for each prompts partition the first offset that may not be generated yet.
        admitted: prompts below the frontier.
    """

    def __init__(self, consumer: Any, partitions: list[TopicPartition], skip: Skip) -> None:
        self._consumer, self._partitions, self._skip = consumer, partitions, skip
        self._queues: dict[int, deque[int]] = {partition.partition: deque() for partition in partitions}
        self._turn: deque[int] = deque(self._queues)
        self._positions: dict[int, int] = {}
        self.frontier: dict[int, int] = {}
        self.admitted = 0

    def recount(self, counted: dict[int, int], admitted: int, newest: dict[int, int]) -> None:
        """Goes to the newest frontier of the topic, counting the prompts from the checkpoint's on.

        Args:
            counted: the checkpoint's frontier; a partition that it lacks is counted from its beginning.
            admitted: prompts below it.
            newest: the newest frontier of the topic.
        """
        first = self._consumer.beginning_offsets(self._partitions)
        self.admitted = admitted
        for partition in self._partitions:
            number = partition.partition
            if number not in counted:
                self._skip(number, 0, first[partition])
            self.frontier[number] = counted.get(number, first[partition])
        behind: dict[TopicPartition, int | None] = {
            p: self.frontier[p.partition]
            for p in self._partitions
            if newest.get(p.partition, 0) > self.frontier[p.partition]
        }
        for record in read_to_end(self._consumer, behind):
            if record.offset < newest[record.partition]:
                self._admit(record.partition, record.offset)
        for partition in behind:
            number = partition.partition
            self._skip(number, self.frontier[number], newest[number])
            self.frontier[number] = max(self.frontier[number], newest[number])
        self._positions = dict(self.frontier)
        assign(self._consumer, {p: self.frontier[p.partition] for p in self._partitions})

    def advance(self, target: int, timeout_s: float = 0.0) -> bool:
        """Admits prompts until ``target`` are admitted in all or none wait; True if any was."""
        before = self.admitted
        while self.admitted < target and self._fill(timeout_s):
            self._admit_in_turn(target)
        return self.admitted > before

    def _admit_in_turn(self, target: int) -> None:
        while self.admitted < target and any(self._queues.values()):
            number = self._turn[0]
            self._turn.rotate(-1)
            if self._queues[number]:
                self._admit(number, self._queues[number].popleft())

    def _admit(self, partition: int, offset: int) -> None:
        self._skip(partition, self.frontier[partition], offset)
        self.frontier[partition] = offset + 1
        self.admitted += 1

    def _fill(self, timeout_s: float) -> bool:
        """Reads ahead until prompts of every partition are known or no more come; True if any are."""
        while self._poll(timeout_s) and not all(self._queues.values()):
            pass
        return any(self._queues.values())

    def _poll(self, timeout_s: float) -> bool:
        wanted = {p for p in self._partitions if len(self._queues[p.partition]) < _QUEUE}
        if not wanted:
            return False
        read_only(self._consumer, wanted, self._positions)
        found = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        for partition, records in found.items():
            self._queues[partition.partition].extend(record.offset for record in records)
            self._positions[partition.partition] = records[-1].offset + 1
        return bool(found)

    def close(self) -> None:
        """Closes the connection."""
        self._consumer.close()
