"""From events of the stream to the planner, the accounts and dead letters of our own.

Arrival ──► was it admitted? may it be what it says? are its tokens the model's? ──► Planner.offer
Fault   ──► the prompts that its headers name, or else the record ──► dead letters
Letter  ──► the prompt is finished
Parked  ──► the prompt is no longer in flight

Only prompts are admitted: what people and programs asked or wrote comes as it comes (:mod:`trainers.purposes`).
"""

from typing import Final

import structlog

from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter, Stage
from trainers.admission import Admission
from trainers.planner import Arrival, Planner
from trainers.purposes import find_bad_weight, find_misfit
from trainers.stream import Event, Fault, Letter, Parked

_log = structlog.get_logger(__name__)
_STAGES: Final[tuple[Stage, ...]] = ("generate", "score", "assemble", "join", "learn")
"""Those whose letters about a prompt end it."""


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
        elif isinstance(event, Parked):
            self._park(event)
        else:
            self._take_arrival(event)

    def _take_arrival(self, arrival: Arrival) -> None:
        if arrival.group.is_prompt and not self._is_admitted(arrival.group):
            detail = f"group {arrival.group} was never admitted"
            self._take_fault(Fault(arrival.at, (), "not_admitted", detail, b""))
            return
        if fault := self._find_fault(arrival):
            self._take_fault(Fault(arrival.at, (arrival.group,), "bad_row", f"group {arrival.group} has {fault}", b""))
            return
        reason = self._planner.offer(arrival)
        if reason:
            _log.info("group dropped", group=str(arrival.group), reason=reason)

    def _find_fault(self, arrival: Arrival) -> str | None:
        purposes = {sample.purpose for sample in arrival.samples}
        if fault := find_misfit(arrival.group, purposes, len(arrival.samples)) or find_bad_weight(arrival.samples):
            return fault
        if arrival.highest_token >= self._vocabulary:
            return f"token {arrival.highest_token}, the model knows {self._vocabulary}"
        return None

    def _park(self, parked: Parked) -> None:
        """A prompt that another program names here is parked at most once, and only while it is in flight."""
        for group in parked.groups:
            if self._is_admitted(group):
                self._planner.accounts.park(group)

    def _take_letter(self, letter: DeadLetter) -> None:
        if letter.topic == self._topics.prompts and letter.stage in _STAGES:
            if letter.group not in self._planner.waiting and letter.partition in self._admission.frontier:
                self._planner.accounts.finish(letter.group)
        elif letter.topic == self._topics.trajectories:
            self._lettered.add((letter.partition, letter.offset))

    def _take_fault(self, fault: Fault) -> None:
        """Writes off the unfinished prompts that a bad record names, or else the record itself.

        For a group that is no prompt nobody waits, so its record is enough: a good one may still come.
        """
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
