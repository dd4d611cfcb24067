"""Which prompts may be answered, and by which weight version at least: follows the admission topic."""

import threading
from bisect import bisect_right
from collections.abc import Callable

import structlog

from schemas.admission import AdmissionFrontier
from schemas.config import RunConfig
from transforms.generation.follow import TopicFollower

_LOG = structlog.get_logger(__name__)


class Frontier:
    """The frontier of every prompts partition and how it got there. Safe to use from several threads.

    Example: after frontiers 8 (version 1) and 16 (version 2) offset 9 needs version 2, and offset 16
    may not be generated.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[int, list[int]] = {}
        self._versions: dict[int, list[int]] = {}

    def apply(self, record: AdmissionFrontier) -> None:
        """Moves on. A frontier never goes back: what was admitted stays admitted."""
        with self._lock:
            for partition, end in record.frontier.items():
                ends = self._ends.setdefault(partition, [])
                if not ends or end > ends[-1]:
                    ends.append(end)
                    self._versions.setdefault(partition, []).append(record.version)

    def end(self, partition: int) -> int:
        """The first offset that may not be generated yet."""
        with self._lock:
            ends = self._ends.get(partition)
            return ends[-1] if ends else 0

    def min_version(self, partition: int, offset: int) -> int:
        """The version of the record that was the first to admit the prompt.

        Raises:
            LookupError: the prompt is not admitted.
        """
        with self._lock:
            index = bisect_right(self._ends.get(partition, []), offset)
            versions = self._versions.get(partition, [])
            if index >= len(versions):
                raise LookupError(f"prompt {partition}/{offset} is not admitted")
            return versions[index]


class FrontierFollower:
    """Keeps a :class:`Frontier` up to date in a thread of its own."""

    def __init__(self, config: RunConfig, on_change: Callable[[], None]) -> None:
        self.frontier = Frontier()
        self._on_change = on_change
        self._follower = TopicFollower(config.kafka, config.topics.admission, AdmissionFrontier, self._apply)

    def start(self) -> None:
        """Begins to follow."""
        self._follower.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._follower.stop()

    def _apply(self, record: AdmissionFrontier) -> None:
        self.frontier.apply(record)
        self._on_change()
        _LOG.debug("admitted", version=record.version, frontier=record.frontier)
