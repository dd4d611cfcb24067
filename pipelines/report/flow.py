"""What passed each stage when: counts in equal parts of the run's time, however long it was."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from schemas.trajectories import Sample

_MOST_PARTS: Final = 120
_LATEST_S: Final = 1 << 33
"""In the year 2242."""
_MOST_NAMES: Final = 200
_OTHERS: Final = "others"
"""Stands for names beyond the first 200: whoever writes to the topics decides how many there are."""


class Timeline:
    """Sums of several series over parts of time, of which there are never more than 120.

    Attributes:
        width_s: seconds of a part; doubles when the run outgrows them.
    """

    def __init__(self) -> None:
        self.width_s = 1
        self._sums: dict[str, dict[int, float]] = {}
        self._first = self._last = 0
        """Parts since 1970 that hold something; meaningless while nothing does."""

    def add(self, series: str, at: datetime, amount: float = 1) -> None:
        """Adds to the part that a moment lies in; one before 1970 or far from now is a broken clock's, and left out."""
        if not 0 <= at.timestamp() < _LATEST_S:
            return
        part = int(at.timestamp() // self.width_s)
        self._first, self._last = (min(self._first, part), max(self._last, part)) if self._sums else (part, part)
        sums = self._sums.setdefault(series, {})
        sums[part] = sums.get(part, 0) + amount
        while self._last - self._first >= _MOST_PARTS:
            self._double()

    def _double(self) -> None:
        self.width_s *= 2
        for series, sums in self._sums.items():
            doubled: dict[int, float] = {}
            for part, amount in sums.items():
                doubled[part // 2] = doubled.get(part // 2, 0) + amount
            self._sums[series] = doubled
        self._first, self._last = self._first // 2, self._last // 2

    def starts(self) -> list[float]:
        """When each part begins, in seconds since 1970, from the first that holds something to the last."""
        return [float(part * self.width_s) for part in self._parts()]

    def rates(self, series: str) -> list[float]:
        """Amount a second in each part; 0 where nothing was added."""
        sums = self._sums.get(series, {})
        return [sums.get(part, 0) / self.width_s for part in self._parts()]

    def between(self, series: str, start: datetime, end: datetime) -> float:
        """What was added in the parts that lie wholly between two moments."""
        first, last = -(-start.timestamp() // self.width_s), end.timestamp() // self.width_s
        return sum(amount for part, amount in self._sums.get(series, {}).items() if first <= part < last)

    def total(self, series: str) -> float:
        """All that was added."""
        return sum(self._sums.get(series, {}).values())

    def _parts(self) -> range:
        return range(self._first, self._last + 1) if self._sums else range(0)


@dataclass
class WorkerFacts:
    """What one engine answered."""

    answers: int = 0
    tokens: int = 0
    first: datetime | None = None
    last: datetime | None = None

    def add(self, answers: int, tokens: int, at: datetime) -> None:
        """Counts a group."""
        self.answers += answers
        self.tokens += tokens
        self.first = min(self.first or at, at)
        self.last = max(self.last or at, at)


@dataclass
class Flow:
    """Figures over all groups, those that the book does not keep included."""

    timeline: Timeline = field(default_factory=Timeline)
    workers: dict[str, WorkerFacts] = field(default_factory=dict)
    reward_errors: Counter[str] = field(default_factory=Counter)
    """Samples without a reward, by reason."""
    finish_reasons: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    """Response tokens."""
    taken_in_flight: set[int] = field(default_factory=set)
    """Weight versions that took over in the middle of at least one answer."""
    admitted: list[tuple[datetime, int]] = field(default_factory=list)
    """When how many prompts had been admitted, ascending."""

    def add(self, samples: Sequence[Sample]) -> None:
        """Counts a group of the trajectories topic."""
        first, tokens = samples[0], sum(len(sample.response_token_ids) for sample in samples)
        self.tokens += tokens
        self.timeline.add("answered", first.generated_at)
        self.timeline.add("tokens", first.generated_at, tokens)
        worker = self.workers.setdefault(_known(first.worker, self.workers), WorkerFacts())
        worker.add(len(samples), tokens, first.generated_at)
        for sample in samples:
            self.finish_reasons[_known(sample.finish_reason, self.finish_reasons)] += 1
            if sample.reward_error is not None:
                self.reward_errors[_known(sample.reward_error, self.reward_errors)] += 1
            self.taken_in_flight.update(span.version for span in sample.weight_version_spans[1:])


def _known(name: str, names: Mapping[str, object]) -> str:
    return name if name in names or len(names) < _MOST_NAMES else _OTHERS
