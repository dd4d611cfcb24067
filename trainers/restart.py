"""What the ledger tells a learner that starts: its generation, which checkpoints count, what to redo."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from schemas.config import RunConfig
from schemas.errors import RecordError, StateError
from schemas.ledger import (
    CheckpointEntry,
    LedgerEntry,
    Position,
    StartEntry,
    StepEntry,
    UpdateEntry,
    decode_entry,
)
from trainers.log import read_topic


@dataclass(frozen=True, slots=True)
class History:
    """The ledger as it was when the learner started, in log order."""

    entries: Sequence[LedgerEntry]

    @property
    def generation(self) -> int:
        """The newest generation; 0 if nothing ever started."""
        return max((entry.generation for entry in self._starts()), default=0)

    def _starts(self) -> list[StartEntry]:
        return [entry for entry in self.entries if isinstance(entry, StartEntry)]

    def checkpoints(self) -> list[CheckpointEntry]:
        """All that were recorded."""
        return [entry for entry in self.entries if isinstance(entry, CheckpointEntry)]

    def updates(self) -> list[UpdateEntry]:
        """All that were written for the federation, of whatever line: they are announced for ever."""
        return [entry for entry in self.entries if isinstance(entry, UpdateEntry)]

    def start_of(self, generation: int) -> StartEntry | None:
        """The entry with which a generation started."""
        return next((entry for entry in self._starts() if entry.generation == generation), None)

    def is_on_line(self, position: Position) -> bool:
        """Whether the point still belongs to the surviving line: no later generation started from before it."""
        known = {entry.generation for entry in self._starts()}
        later = [entry for entry in self._starts() if entry.generation > position.generation]
        return position.generation in known and all(position.step <= _continued(entry) for entry in later)

    def skipped_steps(self, step: int) -> list[int]:
        """Steps of the line, up to ``step``, that changed no weight."""
        line, _ = self._replay()
        return [entry.step for entry in line if entry.step <= step and not entry.trained]

    def steps_after(self, step: int) -> list[StepEntry]:
        """The steps to do again by a learner that continues from ``step``.

        These are the later steps of the line, and beyond them those that an earlier learner was
        about to redo when it ended; not those that one gave up and whose groups a step of it dropped.
        """
        line, ahead = self._replay()
        return [entry for entry in (*line, *ahead) if entry.step > step]

    def skips(self) -> list[StepEntry]:
        """The last steps of all, if their gradients were not finite; one that had nothing to train is passed over."""
        line, ahead = self._replay()
        tried = [entry for entry in (*line, *ahead) if entry.trained or is_skip(entry)]
        return list(takewhile(is_skip, reversed(tried)))[::-1]

    def last_trained(self) -> int:
        """The last step that changed weights; 0 if there is none."""
        line, ahead = self._replay()
        return max((entry.step for entry in (*line, *ahead) if entry.trained), default=0)

    def _replay(self) -> tuple[list[StepEntry], list[StepEntry]]:
        line: list[StepEntry] = []
        ahead: list[StepEntry] = []
        given_up: tuple[int, ...] = ()
        for entry in self.entries:
            if isinstance(entry, StartEntry):
                kept = _continued(entry)
                ahead = [step for step in line if step.step > kept] + ahead
                line = [step for step in line if step.step <= kept]
                given_up = entry.gives_up
            elif isinstance(entry, StepEntry):
                line.append(entry)
                ahead = [step for step in ahead if step.step > entry.step and step.step not in given_up]
        return line, ahead


def read_history(config: RunConfig) -> History:
    """The ledger up to now.

    Raises:
        StateError: a record of it is not an entry.
    """
    return History([_entry(record) for record in read_topic(config, config.topics.ledger)])


def _entry(record: Any) -> LedgerEntry:
    try:
        return decode_entry(record.value)
    except RecordError as error:
        raise StateError(f"{record.topic} offset {record.offset} is not a ledger entry: {error}") from error


def is_skip(entry: StepEntry) -> bool:
    """Whether the step changed nothing because its gradient was not finite."""
    return not entry.trained and any(drop.reason == "nonfinite" for drop in entry.dropped)


def _continued(entry: StartEntry) -> int:
    return entry.continues.step if entry.continues else 0
