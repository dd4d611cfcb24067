"""Which prompts are finished, and what the log already says about the records that may be read again.

Every admitted prompt is finished exactly once: trained, dropped or dead. One that waits for feedback is parked
until then. Admission moves by the count of both. Groups that are no prompts are known too, and never counted.
"""

import base64
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Final, Self

from schemas.identity import GroupId
from schemas.ledger import Adoptions, StepEntry
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
    parked: set[GroupId] = field(default_factory=set)
    """Admitted prompts that wait for feedback: not finished, and no longer in flight."""
    contributed: set[GroupId] = field(default_factory=set)
    """Groups that are no prompts and were trained or dropped. Nobody admitted them, so their offsets are whatever a
    writer says: no bitmap holds them."""
    settled: set[tuple[GroupId, Place]] = field(default_factory=set)
    """Groups at places that the ledger has an entry for (or will have with the next step): reading
    such a place again means nothing."""

    def is_finished(self, group: GroupId) -> bool:
        """Whether the group was trained, dropped or became a dead letter."""
        if not group.is_prompt:
            return group in self.contributed
        return group.offset in self.finished.get(group.partition, OffsetSet())

    def finish(self, group: GroupId) -> bool:
        """Notes that a group is finished, and counts it if it is a prompt; False if it was already."""
        if self.is_finished(group):
            return False
        if group.is_prompt:
            self.finished.setdefault(group.partition, OffsetSet()).add(group.offset)
            self.count += 1
            self.parked.discard(group)
        else:
            self.contributed.add(group)
        return True

    def park(self, group: GroupId) -> None:
        """Notes that an admitted prompt waits for feedback, unless it is finished."""
        if not self.is_finished(group):
            self.parked.add(group)

    @property
    def released(self) -> int:
        """Admitted prompts that are no longer in flight: each makes room for another one, once."""
        return self.count + len(self.parked)

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
            "parked": _pack(self.parked),
            "contributed": _pack(self.contributed),
            "settled": sorted([list(group), list(at)] for group, at in self.settled),
        }

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Self:
        """The inverse of :meth:`dump`, also of those that knew of prompts only."""
        return cls(
            {int(p): OffsetSet.decode(low, text) for p, (low, text) in state["finished"].items()},
            state["count"],
            _unpack(state.get("parked", {})),
            _unpack(state.get("contributed", {})),
            {(GroupId(*group), (at[0], at[1])) for group, at in state["settled"]},
        )


def _pack(groups: Iterable[GroupId]) -> dict[str, str]:
    """For each partition its offsets, ascending, each as its distance from the one before; compressed."""
    offsets: dict[int, list[int]] = {}
    for group in sorted(groups):
        offsets.setdefault(group.partition, []).append(group.offset)
    steps = {number: [b - a for a, b in pairwise((0, *members))] for number, members in offsets.items()}
    return {str(p): base64.b64encode(zlib.compress(json.dumps(s).encode())).decode() for p, s in steps.items()}


def _unpack(packed: dict[str, str]) -> set[GroupId]:
    """The inverse of :func:`_pack`."""
    return {
        GroupId(int(partition), offset)
        for partition, text in packed.items()
        for offset in accumulate(json.loads(zlib.decompress(base64.b64decode(text))))
    }


@dataclass(slots=True)
class Versions:
    """Which weight versions were announced, and how old each is along the surviving line."""

    steps: dict[int, int] = field(default_factory=dict)
    """The step of each announced version."""
    skipped: list[int] = field(default_factory=list)
    """Steps of the line that changed no weight."""
    generations: dict[int, int] = field(default_factory=dict)
    """Of each announced version."""
    adopted: Adoptions = field(default_factory=Adoptions)
    """Where lines went on from other weights: that makes what was there before older by one, as a step does."""

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
        then = self._updates(self.steps[version]) + self.adopted.of(version, self.generations.get(version, 0))
        return max(0, self._updates(steps_done) + self.adopted.until(steps_done) - then)

    def _updates(self, step: int) -> int:
        return step - sum(1 for skipped in self.skipped if skipped <= step)
