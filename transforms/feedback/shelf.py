"""The cases of one key, in memory, and the journal by which Beam's state keeps them.

    items ──► take ──► cases ──┬─────────────► journal (state): what was taken, as it came
                         │     └──► settle ──► journal (state): what became of the cases, without their rollouts
                         │                     stamp (state): which entry is the newest
                         └─── equal to the stamp of the shelf in memory: nothing is read; else rebuilt from the journal

A group's own key would be the plain form. But state is read by a request each, and on a local runner a request takes a
millisecond, as long as all else together ten times over. So groups share a key, a bundle reads one stamp for all of
them and appends what it did; the journal is read only where the key was last worked on elsewhere, and is written anew
once most of it is of the past.

Each case is settled as of its own moment, so it does not matter when a shelf is settled, or how often.
"""

import heapq
import pickle
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from schemas.identity import GroupId
from schemas.joining import FeedbackConfig
from transforms.feedback.case import ROUNDING_S, Case, Rules, settle, take, wakes_at
from transforms.feedback.items import Item, Settled

_PARTS_A_CASE: Final = 4
"""Of the journal, for every open case, before it is written anew: a rollout, a judgement, a decision, and one more."""
_SLACK_PARTS: Final = 1024
_CHUNK_CASES: Final = 256
"""Of one entry of a journal that is written anew."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A part of the journal: what one bundle did."""

    number: int
    """Counts up; a bag has no order."""
    stamp: str
    """Drawn for this entry."""
    taken: bytes = b""
    """Items, as :func:`pack` makes them."""
    cases: tuple[Case, ...] = ()
    """As they were after it; an empty one is forgotten."""
    kept: frozenset[GroupId] = frozenset()
    """Those whose rollouts are as before and left out here: most of a case is its rollout."""


def pack(items: Sequence[Item]) -> bytes:
    """Items on their way into the state, and in it: pickled once for both."""
    return pickle.dumps(items, pickle.HIGHEST_PROTOCOL)


def unpack(packed: bytes) -> tuple[Item, ...]:
    """The inverse of :func:`pack`; only this pipeline writes it."""
    items: tuple[Item, ...] = pickle.loads(packed)  # noqa: S301
    return items


@dataclass(slots=True)
class Shelf:
    """All open cases of one key."""

    rules: FeedbackConfig
    cases: dict[GroupId, Case] = field(default_factory=dict)
    stamp: str = ""
    """Of the newest entry; empty before the first."""
    _number: int = 0
    _parts: int = 0
    """Items and cases in the journal, old ones and new ones."""
    _due: dict[GroupId, float] = field(default_factory=dict)
    _wakes: list[tuple[float, GroupId]] = field(default_factory=list)
    """A heap; entries of cases that have changed since are passed over."""

    @classmethod
    def restored(cls, rules: FeedbackConfig, journal: Iterable[Entry]) -> "Shelf":
        """The shelf that a journal tells of."""
        shelf = cls(rules)
        for entry in sorted(journal, key=lambda each: each.number):
            if entry.taken:
                shelf.take(items := unpack(entry.taken))
                shelf._parts += len(items)
            for case in entry.cases:
                shelf._put(shelf._with_rollouts(case) if case.group in entry.kept else case)
            shelf._number, shelf.stamp = entry.number, entry.stamp
            shelf._parts += len(entry.cases)
        return shelf

    def take(self, items: Iterable[Item]) -> None:
        """Puts items to their cases."""
        for item in items:
            before = self.cases.get(item.group) or Case(item.group)
            after = take(before, item)
            if after is not before:
                self._put(after)

    def settle(self, now_s: float, rules: Rules, most: int) -> tuple[list[Settled], set[GroupId]]:
        """Makes decisions that are due.

        Args:
            now_s: all that was appended until then was taken, in seconds since 1970.
            rules: of the run.
            most: decisions; what is left is due still.

        Returns:
            What is to be written, and the groups that changed.
        """
        settled: list[Settled] = []
        changed = set()
        for _ in range(most):
            if self.wakes_at() > now_s + ROUNDING_S:
                break
            group = heapq.heappop(self._wakes)[1]
            found, case = settle(self.cases[group], now_s, rules)
            settled += found
            self._put(case)
            changed.add(group)
        return settled, changed

    def wakes_at(self) -> float:
        """When a case has to be looked at next, in seconds since 1970; infinity for never."""
        while self._wakes and self._due.get(self._wakes[0][1]) != self._wakes[0][0]:
            heapq.heappop(self._wakes)
        return self._wakes[0][0] if self._wakes else float("inf")

    def _put(self, case: Case) -> None:
        group = case.group
        if case.is_empty:
            self.cases.pop(group, None)
            self._due.pop(group, None)
            return
        self.cases[group] = case
        self._due[group] = due_s = wakes_at(case, self.rules)
        heapq.heappush(self._wakes, (due_s, group))

    def _with_rollouts(self, case: Case) -> Case:
        known = self.cases[case.group]
        return replace(case, awaited=known.awaited, others=known.others)

    def journal_of(self, taken: bytes, items: int) -> Entry:
        """What the state has to be told after items were taken."""
        self._parts += items
        return self._entry(taken=taken)

    def journal(self, changed: Iterable[GroupId]) -> tuple[bool, Sequence[Entry]]:
        """What the state has to be told after cases were settled.

        Returns:
            Whether the journal is to be emptied first, and the entries to be added.
        """
        cases = [self.cases.get(group) or Case(group) for group in changed]
        if self._parts + len(cases) <= _PARTS_A_CASE * len(self.cases) + _SLACK_PARTS:
            self._parts += len(cases)
            bare = tuple(replace(case, awaited=None, others=()) for case in cases)
            return False, [self._entry(cases=bare, kept=frozenset(case.group for case in cases if case.awaited))]
        every = tuple(self.cases.values())
        self._parts = len(every)
        chunks = [every[start : start + _CHUNK_CASES] for start in range(0, len(every), _CHUNK_CASES)]
        return True, [self._entry(cases=chunk) for chunk in chunks or [()]]

    def _entry(self, **parts: Any) -> Entry:
        self._number += 1
        self.stamp = uuid.uuid4().hex
        return Entry(self._number, self.stamp, **parts)
