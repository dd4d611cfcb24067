"""Records of ``{run}.ledger``: written by the learner, read by the learner at its start and by the audit.

The *surviving line* is what counts: starting from the newest ``start`` entry and going back, the
steps of a generation up to the step that the next generation continues from.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from schemas.federation import SiteUpdate
from schemas.identity import GroupId
from schemas.records import Instant, Record, decode_one_of, now

DropReason = Literal[
    "stale", "zero_variance", "duplicate", "unknown_version", "bad_weights", "nonfinite", "quarantined"
]
"""``quarantined``: of a step that was given up, because gradients stopped being finite after it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Position(_Part):
    """A point of the surviving line. Example: ``{"generation": 1, "step": 10}``."""

    generation: int = Field(ge=1)
    step: int = Field(ge=0)


class TrainedGroup(_Part):
    """A group that contributed to a step.

    Example: ``{"group": [0, 38], "at": [1, 17], "attempt": "…", "samples": 8, "versions": [11, 12]}``.
    """

    group: GroupId
    at: tuple[int, int]
    """Partition and offset of its record in the trajectories topic."""
    attempt: str
    samples: int = Field(ge=1)
    """Rows of the group, those without a reward included."""
    versions: tuple[int, int]
    """Oldest and newest weight version among its tokens."""


class DroppedGroup(_Part):
    """A group that was consumed without contributing.

    Example: ``{"group": [1, 35], "at": [0, 16], "reason": "stale"}``.
    """

    group: GroupId
    at: tuple[int, int]
    reason: DropReason


class Settings(_Part):
    """What the audit needs to know of the learner's configuration."""

    max_staleness: int = Field(ge=0)
    groups_per_step: int = Field(ge=1)
    max_token_staleness: int | None = Field(default=None, ge=0)
    """Null where samples are stale or not as a whole."""
    max_feedback_staleness: int | None = Field(default=None, ge=0)
    """Of groups whose reward came as feedback, and of corrections; null where the learner knew of none."""


class Numerics(_Part):
    """What the bits of a learner's steps depend on, besides configuration and trajectories.

    Example: ``{"torch": "2.13.0+cpu", "device": "AVX2", "threads": 2, "ranks": 1}``.
    """

    torch: str
    """Its version."""
    device: str
    """Name of the GPU, or the instructions that torch uses of the CPU."""
    threads: int = Field(ge=1)
    """With which one operation is computed: sums depend on how they are divided."""
    ranks: int = Field(ge=1)


class StartEntry(Record):
    """A learner started.

    Example: ``{"schema": 1, "kind": "start", "generation": 2,
    "continues": {"generation": 1, "step": 10}, "settings": {"max_staleness": 1, "groups_per_step": 8}}``.
    """

    kind: Literal["start"] = "start"
    generation: int = Field(ge=1)
    continues: Position | None = None
    """Null for the first start of a run."""
    gives_up: tuple[int, ...] = ()
    """Steps of the dead line that are not done again, ascending: the weights that they led to gave gradients that
    were not finite. The first step of this start drops their groups."""
    settings: Settings | None = None
    """Null where another program wrote the entry."""
    numerics: Numerics | None = None
    """Null where it is not known; a replay then takes what it has."""
    at: Instant = Field(default_factory=now)


class StepEntry(Record):
    """One optimizer step, in the same transaction as its weight version and admission frontier.

    Example::

        {"schema": 1, "kind": "step", "generation": 2, "step": 11, "version": 13,
         "trained": [{"group": [0, 38], "at": [1, 17], "attempt": "…", "samples": 8, "versions": [11, 12]}],
         "dropped": [{"group": [1, 35], "at": [0, 16], "reason": "stale"}],
         "metrics": {"loss": 0.1, "grad_norm": 0.7, "reward_mean": 0.55, "staleness_max": 1}}
    """

    kind: Literal["step"] = "step"
    generation: int = Field(ge=1)
    step: int = Field(ge=1)
    """Steps done after this one."""
    version: int = Field(ge=1)
    """The weight version that this step produced."""
    trained: tuple[TrainedGroup, ...]
    """Empty for a step that was skipped because its gradient was not finite."""
    dropped: tuple[DroppedGroup, ...]
    too_old: tuple[int, ...] = ()
    """Weight versions whose tokens were left out of the loss (``learner.max_token_staleness``), ascending."""
    metrics: dict[str, float] = Field(default_factory=dict)
    at: Instant = Field(default_factory=now)


class CheckpointEntry(Record):
    """A checkpoint was written and verified.

    Example: ``{"schema": 1, "kind": "checkpoint", "generation": 2, "step": 20,
    "manifest_sha256": "…", "parent_sha256": "…"}``.
    """

    kind: Literal["checkpoint"] = "checkpoint"
    generation: int = Field(ge=1)
    step: int = Field(ge=0)
    manifest_sha256: str
    parent_sha256: str | None = None
    """Null for the first checkpoint of a run."""
    at: Instant = Field(default_factory=now)


class UpdateEntry(Record):
    """A site's learner has written an update for its federation, and is about to announce it there.

    It holds what the steps after ``since`` up to ``step`` made of a global version. Whatever dies then, the same record
    is announced again.

    Example::

        {"schema": 1, "kind": "update", "generation": 2, "step": 20, "since": 10, "federation": "hospitals",
         "update": {"schema": 1, "site": "north", "sequence": 2, "round": 3, "base_version": 3, "samples": 640,
         "tokens": 81920, "steps": 10, "codec": "full", "bytes": 851968, "manifest_sha256": "…", "signature": null,
         "published_at": "2026-01-31T12:00:00.000Z"}}
    """

    kind: Literal["update"] = "update"
    generation: int = Field(ge=1)
    step: int = Field(ge=1)
    """The last step that is part of it."""
    since: int = Field(ge=0)
    """Steps done when the global version was adopted: those after it are part of the update."""
    federation: str
    """Whose it is."""
    update: SiteUpdate
    at: Instant = Field(default_factory=now)


class AdoptEntry(Record):
    """A site's learner goes on from a global version, in the same transaction as the weights that it then has.

    Example::

        {"schema": 1, "kind": "adopt", "generation": 2, "step": 20, "version": 24, "federation": "hospitals",
         "global_version": 4, "manifest_sha256": "…"}
    """

    kind: Literal["adopt"] = "adopt"
    generation: int = Field(ge=1)
    step: int = Field(ge=0)
    """Steps done before it."""
    version: int = Field(ge=1)
    """The weight version of this run that has the global weights."""
    federation: str
    """Whose version it is."""
    global_version: int = Field(ge=1)
    """Of the federation."""
    manifest_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the global version's manifest."""
    at: Instant = Field(default_factory=now)


LedgerEntry = StartEntry | StepEntry | CheckpointEntry | UpdateEntry | AdoptEntry
_ADAPTER: TypeAdapter[LedgerEntry] = TypeAdapter(Annotated[LedgerEntry, Field(discriminator="kind")])


def decode_entry(value: bytes) -> LedgerEntry:
    """Reads one ledger record.

    Raises:
        RecordError: ``bad_record``.
    """
    return decode_one_of(_ADAPTER, value)


def surviving_steps(entries: Iterable[LedgerEntry]) -> list[StepEntry]:
    """The step entries of the surviving line, in order of steps.

    Entries are given in log order. When a generation starts, everything later than the point that
    it continues from leaves the line.
    """
    line: list[StepEntry] = []
    for entry in entries:
        if isinstance(entry, StartEntry):
            keep = entry.continues.step if entry.continues else 0
            line = [step for step in line if step.step <= keep]
        elif isinstance(entry, StepEntry):
            line.append(entry)
    return line


def surviving_adoptions(entries: Iterable[LedgerEntry]) -> list[AdoptEntry]:
    """The adoptions of the surviving line, in order.

    A checkpoint is written before the adoption that follows its step, so whoever continues from it adopts anew.
    """
    line: list[AdoptEntry] = []
    for entry in entries:
        if isinstance(entry, StartEntry):
            keep = entry.continues.step if entry.continues else 0
            line = [adoption for adoption in line if adoption.step < keep]
        elif isinstance(entry, AdoptEntry):
            line.append(entry)
    return line


@dataclass
class Adoptions:
    """How often weights were replaced by others before a version, or before a step: each time ages what was there.

    Entries of the ledger are given in log order, of any kind.
    """

    line: list[AdoptEntry] = field(default_factory=list)
    """Those of the surviving line so far."""
    _kept: dict[int, int] = field(default_factory=dict)
    """By generation, how many its line had when it started."""
    _own: dict[int, list[int]] = field(default_factory=dict)
    """By generation, the versions that it announced with an adoption, ascending."""

    def add(self, entry: LedgerEntry) -> None:
        """The next entry of the ledger."""
        if isinstance(entry, StartEntry):
            self.line = surviving_adoptions([*self.line, entry])
            self._kept[entry.generation] = len(self.line)
        elif isinstance(entry, AdoptEntry):
            self.line.append(entry)
            self._own.setdefault(entry.generation, []).append(entry.version)

    def of(self, version: int, generation: int) -> int:
        """Before a version, on the line that its generation was part of."""
        return self._kept.get(generation, 0) + bisect_right(self._own.get(generation, ()), version)

    def until(self, steps_done: int) -> int:
        """Before the step after so many, on the surviving line."""
        return bisect_right(self.line, steps_done, key=lambda each: each.step)
