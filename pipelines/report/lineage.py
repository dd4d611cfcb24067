"""Where each group went: the step that trained it, its weight version, its checkpoint; or why it was not trained.

ledger, weights ──► Lineage.steps ◄── index ── Fate of a group
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.identity import GroupId
from schemas.ledger import CheckpointEntry, LedgerEntry, StartEntry, StepEntry
from schemas.weights import WeightVersion

TRAINED = "trained"
WAITING = "waiting"
"""Of a group that no step of the surviving line has consumed."""

Place = tuple[GroupId, tuple[int, int]]
"""A group, and partition and offset of the record that it lies in: a copy is another one."""


@dataclass(slots=True)
class StepFacts:
    """One step as lineage shows it."""

    entry: StepEntry
    survives: bool = True
    """Whether it is part of the surviving line."""
    checkpoint: CheckpointEntry | None = None
    """The first one that holds it; null if there is none yet."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What the learner did with a group in one step."""

    word: str
    """``trained``, ``waiting``, or the reason of its drop."""
    step: int | None
    """Index of the step in ``Lineage.steps``; null for ``waiting``."""


@dataclass
class Lineage:
    """All steps of a run in the order of the log, and what they did to which group."""

    steps: list[StepFacts] = field(default_factory=list)
    weights: dict[int, WeightVersion] = field(default_factory=dict)
    """Announcements by version."""
    fates: dict[Place, list[Fate]] = field(default_factory=lambda: defaultdict(list))

    def of(self, group: GroupId, at: tuple[int, int]) -> tuple[Fate, list[Fate]]:
        """What became of a group on the surviving line, and what else steps did to it that did not survive."""
        told = self.fates.get((group, at), [])
        alive = [fate for fate in told if fate.step is not None and self.steps[fate.step].survives]
        rest = [fate for fate in told if fate not in alive]
        return (alive[-1] if alive else Fate(WAITING, None)), rest


def trace(ledger: Sequence[LedgerEntry], weights: Sequence[WeightVersion]) -> Lineage:
    """Follows every group through the ledger."""
    found = Lineage(weights={version.version: version for version in weights})
    for entry in ledger:
        if isinstance(entry, StartEntry):
            _cut(found.steps, entry.continues.step if entry.continues else 0)
        elif isinstance(entry, CheckpointEntry):
            _save(found.steps, entry)
        elif isinstance(entry, StepEntry):
            found.steps.append(StepFacts(entry))
            for trained in entry.trained:
                found.fates[trained.group, trained.at].append(Fate(TRAINED, len(found.steps) - 1))
            for dropped in entry.dropped:
                found.fates[dropped.group, dropped.at].append(Fate(dropped.reason, len(found.steps) - 1))
    return found


def _cut(steps: Sequence[StepFacts], keep: int) -> None:
    """Everything after the step that a new generation continues from leaves the line."""
    for step in steps:
        step.survives = step.survives and step.entry.step <= keep


def _save(steps: Sequence[StepFacts], checkpoint: CheckpointEntry) -> None:
    for step in reversed(steps):
        if step.checkpoint:
            break
        if step.survives and step.entry.step <= checkpoint.step:
            step.checkpoint = checkpoint
