"""The cases of one key, in memory, and the journal by which Beam's state keeps them.

    items ──► take ──┐                         ┌──► journal (state): Entry, appended by every bundle
                     ├──► cases that changed ──┤
    moment ► settle ─┘                         └──► stamp (state): which entry is the newest
                                                          │ equal to that of the shelf in memory: nothing is read
    stamp, journal ──► restored ◄─────────────────────────┘ else: rebuilt from the journal

A group's own key would be the plain form. But state is read by a request each, and on a local runner a request takes a
millisecond, as long as all else together ten times over. So groups share a key, a bundle reads one stamp for all of
them and appends what changed; the journal is read only where the key was last worked on elsewhere, and is written anew
once most of it is of the past.
"""

import heapq
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from schemas.identity import GroupId
from schemas.joining import FeedbackConfig
from transforms.feedback.case import ROUNDING_S, Case, Rules, settle, take, wakes_at
from transforms.feedback.items import Item, Settled

_SLACK_CASES: Final = 256
"""The journal may hold this many cases more than twice those that are open before it is written anew."""
_CHUNK_CASES: Final = 256
"""Of one entry of a journal that is written anew."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A part of the journal: cases as they were after one bundle."""

    number: int
    """Counts up; a bag has no order."""
    stamp: str
    """Drawn for this entry."""
    cases: tuple[Case, ...]
    """Those that changed; an empty one is forgotten."""


@dataclass(slots=True)
class Shelf:
    """All open cases of one key."""

    rules: FeedbackConfig
    cases: dict[GroupId, Case] = field(default_factory=dict)
    stamp: str = ""
    """Of the newest entry; empty before the first."""
    _number: int = 0
    _journalled: int = 0
    """Cases in the journal, old ones and new ones."""
    _wakes: list[tuple[float, GroupId]] = field(default_factory=list)
    """A heap; entries of cases that have changed since are passed over."""

    @classmethod
    def restored(cls, rules: FeedbackConfig, journal: Iterable[Entry]) -> "Shelf":
        """The shelf that a journal tells of."""
        shelf = cls(rules)
        for entry in sorted(journal, key=lambda each: each.number):
            for case in entry.cases:
                shelf._put(case)
            shelf._number, shelf.stamp = entry.number, entry.stamp
            shelf._journalled += len(entry.cases)
        return shelf

    def take(self, items: Iterable[Item]) -> set[GroupId]:
        """Puts items to their cases; gives the groups that changed."""
        changed = set()
        for item in items:
            before = self.cases.get(item.group) or Case(item.group)
            after = take(before, item)
            if after is not before:
                self._put(after)
                changed.add(item.group)
        return changed

    def settle(self, now_s: float, rules: Rules) -> tuple[list[Settled], set[GroupId]]:
        """Decides what is due; gives it and the groups that changed."""
        settled: list[Settled] = []
        changed = set()
        while self.wakes_at() <= now_s + ROUNDING_S:
            group = heapq.heappop(self._wakes)[1]
            found, case = settle(self.cases[group], now_s, rules)
            settled += found
            self._put(case)
            changed.add(group)
        return settled, changed

    def wakes_at(self) -> float:
        """When a case has to be looked at next, in seconds since 1970; infinity for never."""
        while self._wakes and not self._is_current(*self._wakes[0]):
            heapq.heappop(self._wakes)
        return self._wakes[0][0] if self._wakes else float("inf")

    def _is_current(self, wakes_s: float, group: GroupId) -> bool:
        case = self.cases.get(group)
        return case is not None and wakes_at(case, self.rules) == wakes_s

    def _put(self, case: Case) -> None:
        if case.is_empty:
            self.cases.pop(case.group, None)
            return
        self.cases[case.group] = case
        heapq.heappush(self._wakes, (wakes_at(case, self.rules), case.group))

    def journal(self, changed: Iterable[GroupId]) -> tuple[bool, Sequence[Entry]]:
        """What the state has to be told.

        Returns:
            Whether the journal is to be emptied first, and the entries to be added.
        """
        cases = [self.cases.get(group) or Case(group) for group in changed]
        if self._journalled + len(cases) <= 2 * len(self.cases) + _SLACK_CASES:
            self._journalled += len(cases)
            return False, [self._entry(cases)]
        every = list(self.cases.values())
        self._journalled = len(every)
        chunks = [every[start : start + _CHUNK_CASES] for start in range(0, len(every), _CHUNK_CASES)]
        return True, [self._entry(chunk) for chunk in chunks or [[]]]

    def _entry(self, cases: Sequence[Case]) -> Entry:
        self._number += 1
        self.stamp = uuid.uuid4().hex
        return Entry(self._number, self.stamp, tuple(cases))
