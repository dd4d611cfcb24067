"""What the learner made of every group: the ledger joined with the trajectories.

    ledger ──► surviving line ──► trained at step … │ dropped, with the reason     (one Fate a group and place)
    trajectories ──► rewards of trained groups, step by step ──► Advantages ──► advantages of samples

The learner writes no advantages down. They are computed again from the rewards, in the order of the steps, by the
code that the learner computes them with: the same numbers, but for a value head (``gae``), which the log does not hold.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import pyarrow as pa

from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.identity import GroupId
from schemas.ledger import LedgerEntry, StepEntry, surviving_steps
from schemas.trajectories import Sample, Span
from trainers.advantages import Advantages

Place = tuple[int, int]
"""Partition and offset of a record of the trajectories topic."""
Key = tuple[GroupId, Place]
Ending = Literal["trained", "dropped", "refused", "waiting"]
"""``refused``: its record became a dead letter; ``waiting``: no step of the surviving line has consumed it."""

NEEDED: Final = (
    "prompt_partition", "prompt_offset", "sample_index", "task", "purpose", "response_token_ids", "reward",
)  # fmt: skip
"""The columns that advantages depend on."""
_NO_TIME: Final = datetime(1970, 1, 1, tzinfo=UTC)
_BLANK: Final = Sample(
    run="", prompt_partition=0, prompt_offset=0, sample_index=0, attempt_id="", prompt_id=None, task="",
    purpose="train", prompt_token_ids=(), response_token_ids=(), response_logprobs=(), loss_mask=(),
    weight_version_spans=(Span(0, 0),),
    weight_version_min=0, weight_version_max=0, reward=None, reward_parts={}, reward_error=None, finish_reason="",
    worker="", prompt_at=_NO_TIME, generated_at=_NO_TIME, response_text="",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fate:
    """How a group of one trajectories record ended. Example: ``Fate("trained", step=12, version=13)``."""

    ending: Ending
    step: int | None = None
    """Steps done after the one that consumed it; null if none has."""
    version: int | None = None
    """The weight version that this step produced; null if none has."""
    reason: str | None = None
    """Why it was dropped or refused; null otherwise."""


WAITING: Final = Fate("waiting")


@dataclass(frozen=True)
class Fates:
    """How the groups of a run ended, so far."""

    found: Mapping[Key, Fate]
    refused: Mapping[Place, str]
    """Reasons for records that became dead letters."""
    steps: Sequence[StepEntry]
    """The surviving line."""

    @classmethod
    def of(cls, ledger: Iterable[LedgerEntry], letters: Iterable[DeadLetter], topic: str) -> "Fates":
        """Reads them from the log.

        Args:
            ledger: its entries, in the order of the log.
            letters: all dead letters of the run.
            topic: the name of the trajectories topic.
        """
        line = surviving_steps(ledger)
        refused = {(letter.partition, letter.offset): letter.reason for letter in letters if letter.topic == topic}
        return cls(dict(_endings(line)), refused, line)

    def of_group(self, group: GroupId, at: Place) -> Fate:
        """How one group of one record ended."""
        known = self.found.get((group, at))
        if known is None and at in self.refused:
            return Fate("refused", reason=self.refused[at])
        return known or WAITING


def _endings(line: Iterable[StepEntry]) -> Iterator[tuple[Key, Fate]]:
    for entry in line:
        for trained in entry.trained:
            yield (trained.group, trained.at), Fate("trained", entry.step, entry.version)
        for dropped in entry.dropped:
            yield (dropped.group, dropped.at), Fate("dropped", entry.step, entry.version, dropped.reason)


@dataclass
class StepsAgain:
    """Advantages of a run, as its groups are read in any order.

    Args:
        config: of the run.
        steps: the surviving line.

    Attributes:
        found: for each trained group the advantages of its samples, by their index.
    """

    config: RunConfig
    steps: Sequence[StepEntry]
    found: dict[Key, list[float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        objective = self.config.learner.objective
        self._knows = objective.recipe.advantage != "gae"
        self._advantages = Advantages(objective, self.config.length_tokens)
        self._wanted = {(each.group, each.at) for entry in self.steps for each in entry.trained} if self._knows else ()
        self._read: dict[Key, list[Sample]] = {}
        self._next = 0

    def read(self, table: pa.Table, at: Place) -> None:
        """Takes the groups of a record; computes the steps whose groups are all there.

        Args:
            table: has the columns of ``NEEDED``.
            at: the record's place.
        """
        for group, samples in _groups(table):
            if (group, at) in self._wanted:
                self._read[group, at] = samples
        while self._next < len(self.steps) and self._has_all(self.steps[self._next]):
            self._compute(self.steps[self._next])
            self._next += 1

    def _has_all(self, entry: StepEntry) -> bool:
        return all((each.group, each.at) in self._read for each in entry.trained)

    def _compute(self, entry: StepEntry) -> None:
        keys = [(each.group, each.at) for each in entry.trained]
        groups = [self._read.pop(key) for key in keys]
        if not groups:  # a step that was skipped moved no baselines
            return
        self.found.update(zip(keys, self._advantages.of_step(groups), strict=True))
        self._advantages.learn(groups)


def _groups(table: pa.Table) -> Iterator[tuple[GroupId, list[Sample]]]:
    """Samples with what advantages need of them; token ids are numbers, of which only the count is right."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(table.column("response_token_ids")).to_pylist()
    rows = table.drop_columns(["response_token_ids"]).to_pylist()
    groups: dict[GroupId, list[Sample]] = {}
    for row, length in zip(rows, lengths, strict=True):
        sample = _sample(row, length)
        groups.setdefault(sample.group, []).append(sample)
    for group, samples in groups.items():
        yield group, sorted(samples, key=lambda sample: sample.sample_index)


def _sample(row: dict[str, Any], length: int) -> Sample:
    return replace(_BLANK, **{name: row[name] for name in NEEDED if name in row}, response_token_ids=range(length))
