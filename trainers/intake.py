"""From events of the stream to the planner, the accounts and dead letters of our own.

Arrival ──► was it admitted? are its tokens the model's? ──► Planner.offer
Fault   ──► the groups that its headers name, or else the record ──► dead letters
Letter  ──► the prompt is finished
"""

from typing import Final

import structlog

from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from trainers.admission import Admission
from trainers.planner import Arrival, Planner
from trainers.stream import Event, Fault, Letter

_log = structlog.get_logger(__name__)
_STAGES_BEFORE: Final = ("generate", "score", "assemble", "learn")


class Intake:
    """Takes events one by one.

    Args:
        config: of the run.
        planner: gets the groups.
        admission: knows what was admitted.
        vocabulary: number of tokens that the model knows.

    Attributes:
        letters: dead letters that the next transaction has to carry.
    """

    def __init__(self, config: RunConfig, planner: Planner, admission: Admission, vocabulary: int) -> None:
        self._topics, self._planner, self._admission = config.topics, planner, admission
        self._vocabulary = vocabulary
        self._lettered: set[tuple[int, int]] = set()
        self.letters: list[DeadLetter] = []

    def take(self, event: Event) -> None:
        """Deals with one event."""
        if isinstance(event, Letter):
            self._take_letter(event.letter)
        elif isinstance(event, Fault):
            self._take_fault(event)
        else:
            self._take_arrival(event)

    def _take_arrival(self, arrival: Arrival) -> None:
        if not self._is_admitted(arrival.group):
            detail = f"group {arrival.group} was never admitted"
            self._take_fault(Fault(arrival.at, (), "not_admitted", detail, b""))
            return
        if arrival.highest_token >= self._vocabulary:
            detail = f"group {arrival.group} has token {arrival.highest_token}, the model knows {self._vocabulary}"
            self._take_fault(Fault(arrival.at, (arrival.group,), "bad_row", detail, b""))
            return
        reason = self._planner.offer(arrival)
        if reason:
            _log.info("group dropped", group=str(arrival.group), reason=reason)

    def _take_letter(self, letter: DeadLetter) -> None:
        if letter.topic == self._topics.prompts and letter.stage in _STAGES_BEFORE:
            if letter.group not in self._planner.waiting and letter.partition in self._admission.frontier:
                self._planner.accounts.finish(letter.group)
        elif letter.topic == self._topics.trajectories:
            self._lettered.add((letter.partition, letter.offset))

    def _take_fault(self, fault: Fault) -> None:
        """Writes off the unfinished groups that a bad record names, or else the record itself."""
        named = [group for group in fault.groups if self._is_admitted(group)]
        detail = f"{self._topics.trajectories}[{fault.at[0]}] offset {fault.at[1]}: {fault.detail}"
        unfinished = [g for g in named if g not in self._planner.waiting and self._planner.accounts.finish(g)]
        for group in unfinished:
            source = (self._topics.prompts, group.partition, group.offset)
            self.letters.append(DeadLetter.of("learn", fault.reason, detail, source, fault.value))
        if not unfinished and fault.at not in self._lettered:
            self._lettered.add(fault.at)
            source = (self._topics.trajectories, *fault.at)
            self.letters.append(DeadLetter.of("learn", fault.reason, detail, source, fault.value))

    def _is_admitted(self, group: tuple[int, int]) -> bool:
        return 0 <= group[1] < self._admission.frontier.get(group[0], 0)
