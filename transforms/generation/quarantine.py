"""Which prompt kills engines: whatever was in flight when one died is a suspect, and suspects are tried apart.

    engine dies ──► all in flight are suspects ──► one on trial ──► answered, or alive for long enough: the next one
                                                   a worker  └─► its engine dies too: this is the prompt that kills

A worker never has two suspects on trial, so its death convicts exactly one. A prompt that kills its
engine costs two engines, and none of its neighbours is given up for it, even those that were in flight
both times. Prompts that no engine died under go on beside the trials.

A trial does not wait for the answer: it ends once the suspect has run for as long as the longest run
that an engine died under, and a margin. After the failure of a whole machine everything is a suspect
and nothing is guilty; the queue then moves on at that pace. The newest run is tried first, because a
prompt that kills mostly does so soon after it arrives.
"""

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

_MARGIN_S: Final = 1.0
"""How much longer than under its dead engine a suspect has to live."""


@dataclass(slots=True, eq=False)
class Case:
    """What is known against one prompt."""

    suspected: bool = False
    """Whether an engine died while it answered this prompt."""
    began_s: float = 0.0
    """When its last run began, of the event loop's clock."""
    ran_s: float = 0.0
    """How long its last run took until it ended."""
    struck_at_s: float = 0.0
    """When the last run that an engine died under had begun."""
    struck_after_s: float = 0.0
    """The longest run that an engine died under."""


class Quarantine:
    """The suspects of one pool: at most one is on trial at each worker. Lives in one event loop."""

    def __init__(self) -> None:
        self._rooms = 1
        self._trials: dict[Case, str | None] = {}
        self._waiting: list[tuple[float, int, Case, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()
        self.waiting = 0
        """Suspects that wait for their turn: prompts that are in nobody's way."""

    def set_rooms(self, workers: int) -> None:
        """So many workers are up; without any, one suspect waits for the first."""
        self._rooms = max(1, workers)
        self._call()

    @contextlib.asynccontextmanager
    async def turn(self, case: Case) -> AsyncIterator[None]:
        """One attempt; a suspect waits for its turn and keeps it until the attempt or its trial is over."""
        if case.suspected:
            await self._wait(case)
        try:
            yield
        finally:
            self._release(case)

    async def _wait(self, case: Case) -> None:
        if len(self._trials) < self._rooms:
            self._trials[case] = None
            return
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (-case.struck_at_s, next(self._arrivals), case, called))
        self.waiting += 1
        try:
            await called
        except asyncio.CancelledError:
            self._release(case)  # the call may have come just before
            raise
        finally:
            self.waiting -= 1

    def _release(self, case: Case) -> None:
        """The next suspect's turn, if it was this one's."""
        if case in self._trials:
            del self._trials[case]
            self._call()

    def _call(self) -> None:
        while self._waiting and len(self._trials) < self._rooms:
            _, _, following, called = heapq.heappop(self._waiting)
            if not called.done():  # else it was cancelled while it waited
                self._trials[following] = None
                called.set_result(None)

    def is_on_trial(self, case: Case) -> bool:
        """Whether the prompt has to be alone among suspects at its worker."""
        return case in self._trials

    @property
    def occupied(self) -> set[str | None]:
        """The workers that try a suspect already, by url; None if one has its turn and no worker yet."""
        return set(self._trials.values())

    def seat(self, case: Case, url: str) -> None:
        """The prompt goes to this worker; until its trial is over no other suspect does."""
        if case in self._trials:
            self._trials[case] = url

    @contextlib.contextmanager
    def running(self, case: Case) -> Iterator[None]:
        """The time in which an engine has the prompt; a trial that is not over by its end waits for the verdict."""
        loop = asyncio.get_running_loop()
        case.began_s = loop.time()
        on_trial = case in self._trials
        end = loop.call_later(case.struck_after_s + _MARGIN_S, self._release, case) if on_trial else None
        try:
            yield
        finally:
            if end is not None:
                end.cancel()
            case.ran_s = loop.time() - case.began_s

    def convicts(self, case: Case) -> bool:
        """Records that an engine died under the prompt's last run; true if that run was its trial."""
        case.suspected = True
        case.struck_at_s = case.began_s
        case.struck_after_s = max(case.struck_after_s, case.ran_s)
        return case in self._trials
