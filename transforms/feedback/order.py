"""Records of several partitions in one order: that of the times at which the broker appended them.

    partition 0 ──► put ──┐                 ┌──► take: all up to the moment until which every partition is known
    partition 1 ──► put ──┼──► held back ───┤
    read to its end ──────┘                 └──► given_ms: nothing that was appended until then is still to come

Within a partition the broker's clock never goes back, so a partition is known until just before its newest record, and
where nothing waits until a moment that a clock tells. What is given thus depends on the log alone: whichever partition
answers first, however the records are cut into polls, and after a restart, the order is the same. A clock that goes
back all the same, as when another broker leads the partition, or is far ahead of ours, changes the order and stops
nothing.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter
from typing import Any, Final

from kafka import TopicPartition

Placed = tuple[TopicPartition, Any]
"""A record and where it lies."""
_MOST_HELD_BYTES: Final = 32 << 20
"""Of one partition that wait for the others before it has to pause: two seconds of a flood, or one of large groups."""
_MOST_HELD_IN_ALL_BYTES: Final = 256 << 20
"""Of many partitions each may hold less."""
_NEVER_MS: Final = 1 << 62
_RECORD_BYTES: Final = 1024
"""What a record takes beside its value."""


class Order:
    """Holds records back until no earlier one can come.

    Args:
        partitions: all that are read.

    Attributes:
        given_ms: every record that was appended until then, in milliseconds since 1970, was taken.
    """

    def __init__(self, partitions: Iterable[TopicPartition]) -> None:
        self._held: dict[TopicPartition, deque[tuple[int, Any]]] = {each: deque() for each in sorted(partitions)}
        self._known_ms = dict.fromkeys(self._held, -1)
        self._bytes = dict.fromkeys(self._held, 0)
        self._most_bytes = min(_MOST_HELD_BYTES, _MOST_HELD_IN_ALL_BYTES // len(self._held))
        self.given_ms = -1

    def put(self, partition: TopicPartition, records: Iterable[Any], latest_ms: int = _NEVER_MS) -> None:
        """Adds what was read next of one partition.

        Args:
            partition: that was read.
            records: in the order of the log.
            latest_ms: a time after this one is taken for this one: nobody waits until a clock that is wrong is right.
        """
        held, newest_ms = self._held[partition], self._known_ms[partition] + 1
        for record in records:
            newest_ms = max(newest_ms, min(record.timestamp, latest_ms))
            held.append((newest_ms, record))
            self._bytes[partition] += _size_bytes(record)
        self.know(partition, newest_ms - 1)

    def know(self, partition: TopicPartition, until_ms: int) -> None:
        """Whatever is still to come of the partition was appended later than this."""
        self._known_ms[partition] = max(self._known_ms[partition], until_ms)

    @property
    def waits_for_ms(self) -> float:
        """The moment until which all must be known for the next record to be taken; infinity if there is none."""
        return min((held[0][0] for held in self._held.values() if held), default=float("inf"))

    @property
    def is_ready(self) -> bool:
        """Whether there is something to take."""
        return self.waits_for_ms <= min(self._known_ms.values())

    def ahead(self) -> set[TopicPartition]:
        """Partitions that have to wait for the others; never all that the others wait for, however much they hold."""
        slowest_ms = -1 if self.is_ready else min(self._known_ms.values())
        return {
            partition
            for partition, held_bytes in self._bytes.items()
            if held_bytes >= self._most_bytes and self._known_ms[partition] != slowest_ms
        }

    def take(self, most: int) -> list[Placed]:
        """The next records, in order.

        Args:
            most: of them; what is left is given the next time.
        """
        known_ms = min(self._known_ms.values())
        ready = sorted(self._ready(known_ms, most), key=itemgetter(0, 1))
        for _, partition, record in ready[:most]:
            self._held[partition].popleft()
            self._bytes[partition] -= _size_bytes(record)
        left_ms = (ready[most][0] - 1,) if len(ready) > most else ()
        self.given_ms = max(self.given_ms, min((known_ms, *left_ms)))
        return [(partition, record) for _, partition, record in ready[:most]]

    def _ready(self, known_ms: int, most: int) -> Iterator[tuple[int, TopicPartition, Any]]:
        """Of each partition one more than can be taken, so that what is left over is seen."""
        for partition, held in self._held.items():
            for moment_ms, record in islice(held, most + 1):
                if moment_ms > known_ms:
                    break
                yield moment_ms, partition, record


def _size_bytes(record: Any) -> int:
    return _RECORD_BYTES + len(record.value or b"")
