"""Which prompts are finished, and what the log already says about the records that may be read again.

Every admitted prompt is finished exactly once: trained, dropped or dead. Admission moves by the count.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Self

from schemas.identity import GroupId
from schemas.ledger import StepEntry
from schemas.offsets import OffsetSet

Place = tuple[int, int]
"""Partition and offset of a record in the trajectories topic."""

_NO_LIMIT_BYTES: Final = 1 << 30


@dataclass(slots=True)
class Accounts:
    """The finished prompts of the run, exactly."""

    finished: dict[int, OffsetSet] = field(default_factory=dict)
    """For each prompts partition. Offsets that never were a record are members too (:meth:`skip`)."""
    count: int = 0
    """Prompts finished; offsets that never were a record are not counted."""
    settled: set[tuple[GroupId, Place]] = field(default_factory=set)
    """Groups at places that the ledger has an entry for (or will have with the next step): reading
    such a place again means nothing."""

    def is_finished(self, group: GroupId) -> bool:
        """Whether the prompt was trained, dropped or became a dead letter."""
        return group.offset in self.finished.get(group.partition, OffsetSet())

    def finish(self, group: GroupId) -> bool:
        """Counts a prompt as finished; False if it was already."""
        if self.is_finished(group):
            return False
        self.finished.setdefault(group.partition, OffsetSet()).add(group.offset)
        self.count += 1
        return True

    def skip(self, partition: int, start: int, end: int) -> None:
        """Offsets from ``start`` below ``end`` are no records (transaction markers, or beyond retention)."""
        finished = self.finished.setdefault(partition, OffsetSet())
        if start <= finished.low:
            finished.raise_low(end)
        else:
            for offset in range(start, end):
                finished.add(offset)

    def settle(self, group: GroupId, at: Place) -> None:
        """Notes that the group's record at a place is dealt with."""
        self.settled.add((group, at))

    def redo(self, entry: StepEntry) -> None:
        """Counts the groups of a step that is done again."""
        for trained in entry.trained:
            self.settle(trained.group, trained.at)
            self.finish(trained.group)
        for dropped in entry.dropped:
            self.settle(dropped.group, dropped.at)
            if dropped.reason != "duplicate":
                self.finish(dropped.group)

    def forget_below(self, positions: dict[int, int]) -> None:
        """Frees what is known of records that are never read again."""
        self.settled = {(group, at) for group, at in self.settled if at[1] >= positions.get(at[0], 0)}

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "finished": {str(p): [s.low, s.encode(_NO_LIMIT_BYTES)] for p, s in sorted(self.finished.items())},
            "count": self.count,
            "settled": sorted([list(group), list(at)] for group, at in self.settled),
        }

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Self:
        """The inverse of :meth:`dump`."""
        return cls(
            {int(p): OffsetSet.decode(low, text) for p, (low, text) in state["finished"].items()},
            state["count"],
            {(GroupId(*group), (at[0], at[1])) for group, at in state["settled"]},
        )


@dataclass(slots=True)
class Versions:
    """Which weight versions were announced, and how old each is along the surviving line."""

    steps: dict[int, int] = field(default_factory=dict)
    """The step of each announced version."""
    skipped: list[int] = field(default_factory=list)
    """Steps of the line that changed no weight."""

    @property
    def newest(self) -> int:
        """The highest announced version; 0 if there is none."""
        return max(self.steps, default=0)

    def __contains__(self, version: int) -> bool:
        return version in self.steps

    def know_all(self, versions: Iterable[int]) -> bool:
        """Whether each of them was announced."""
        return all(version in self.steps for version in versions)

    def staleness(self, version: int, steps_done: int) -> int:
        """Updates between the version and the weights after ``steps_done`` steps, at least 0.

        A step that changed no weight makes nothing older. A version of a line that was given up
        is as old as its step: what was trained since then on the new line.
        """
        return max(0, self._updates(steps_done) - self._updates(self.steps[version]))

    def _updates(self, step: int) -> int:
        return step - sum(1 for skipped in self.skipped if skipped <= step)
