"""The surviving line of a ledger that grows, in the figures that a screen shows."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from pipelines.audit import Ages
from pipelines.top.state import Learner
from schemas.identity import GroupId
from schemas.ledger import LedgerEntry, Settings, StartEntry, StepEntry
from schemas.weights import WeightVersion

_REWARDS: Final = 40
_STEPS_OF_HISTOGRAM: Final = 50
_ANY: Final = Settings(max_staleness=0, groups_per_step=1)
"""Of no bound is asked."""


class Line:
    """Takes entries in the order of the log.

    Attributes:
        steps: of the surviving line.
        trained: groups that contributed to one of them.
        dropped: groups by reason.
        consumed: by trajectories partition the offset after the newest record that the line consumed.
    """

    def __init__(self) -> None:
        self.steps: list[StepEntry] = []
        self.trained = 0
        self.dropped: Counter[str] = Counter()
        self.consumed: dict[int, int] = {}
        self._ended: set[GroupId] = set()
        self._ages = Ages({}, [0], _ANY)
        self._newest: WeightVersion | None = None
        self._start: StartEntry | None = None
        self._lost_steps = 0

    def add(self, entry: LedgerEntry) -> list[StepEntry]:
        """One entry of the ledger; returns the steps that leave the line with it."""
        if isinstance(entry, StepEntry):
            self._append(entry)
        self._ages.adopted.add(entry)
        if not isinstance(entry, StartEntry):
            return []
        kept = entry.continues.step if entry.continues else 0
        lost = [step for step in self.steps if step.step > kept]
        self._start, self._lost_steps = entry, len(lost)
        if lost:
            self._rebuild([step for step in self.steps if step.step <= kept])
        return lost

    def announce(self, version: WeightVersion) -> None:
        """A weight version, after the entry of its step."""
        self._ages.step_of[version.version] = version.step
        self._ages.generations[version.version] = version.generation
        if self._newest is None or version.supersedes(self._newest):
            self._newest = version

    def has_consumed(self, group: GroupId, at: tuple[int, int]) -> bool:
        """Whether a step of the line trained or dropped the group, whose record is ``at`` (partition, offset)."""
        return group in self._ended and at[1] < self.consumed.get(at[0], 0)

    def learner(self, have: int, steps: int | None) -> Learner:
        """How the learner stands.

        Args:
            have: groups that wait for it.
            steps: how many it will make; null if nobody knows.
        """
        start, newest = self._start, self.steps[-1] if self.steps else None
        return Learner(
            generation=start.generation if start else 0,
            started_at=start.at.timestamp() if start else None,
            continues=start.continues.step if start and start.continues else 0,
            lost_steps=self._lost_steps,
            step=newest.step if newest else 0,
            step_at=newest.at.timestamp() if newest else None,
            steps=steps,
            have=have,
            need=start.settings.groups_per_step if start and start.settings else None,
            version=self._newest.version if self._newest else 0,
            version_at=self._newest.published_at.timestamp() if self._newest else None,
            metrics=newest.metrics if newest else {},
            rewards=tuple(_rewards(self.steps[-_REWARDS:])),
            staleness=self._staleness(),
            dropped=dict(self.dropped),
        )

    def _rebuild(self, steps: list[StepEntry]) -> None:
        self.steps, self.trained, self.dropped, self.consumed = [], 0, Counter(), {}
        self._ended, self._ages.updates[:] = set(), [0]
        for step in steps:
            self._append(step)

    def _append(self, step: StepEntry) -> None:
        self.steps.append(step)
        self.trained += len(step.trained)
        self.dropped.update(group.reason for group in step.dropped)
        self._ages.updates.append(self._ages.updates[-1] + bool(step.trained))
        for group, (partition, offset) in endings(step):
            self._ended.add(group)
            self.consumed[partition] = max(self.consumed.get(partition, 0), offset + 1)

    def _staleness(self) -> dict[int, int]:
        """Updates between the oldest weights of a group and those that were trained."""
        newest = range(max(0, len(self.steps) - _STEPS_OF_HISTOGRAM), len(self.steps))
        found = Counter(
            max(0, self._ages.staleness(group.versions[0], before))
            for before in newest
            for group in self.steps[before].trained
        )
        return dict(sorted(found.items()))


def endings(step: StepEntry) -> Iterator[tuple[GroupId, tuple[int, int]]]:
    """The groups that ended with a step, each with the place of its record."""
    yield from ((group.group, group.at) for group in step.trained)
    yield from ((group.group, group.at) for group in step.dropped)


def _rewards(steps: Iterable[StepEntry]) -> Iterable[float]:
    return (step.metrics["reward_mean"] for step in steps if "reward_mean" in step.metrics)
