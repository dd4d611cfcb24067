"""Dynamic batching: what waits goes through the model together.

    score ──► waiting ──the oldest has waited, or enough are there──► rows of like length ──► a forward pass (thread)
      ◄────────────────────────── its number, or why there is none ──────────────────────────┘

While a pass runs, the next rows gather. Rows go together with those of like length, a power of two apart at most,
so that less than half of a pass is padding. It lives in one event loop.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pipelines.reward_model import metrics
from schemas.errors import AsyncFlowError


class TooManyWaiting(AsyncFlowError):
    """More rows wait than are allowed."""


class ScoringFailed(AsyncFlowError):
    """The forward pass raised."""


class NotFinite(AsyncFlowError):
    """The model gave something that is no finite number."""


class _Waiting(NamedTuple):
    row: Sequence[int]
    number: "asyncio.Future[float]"


class Batcher:
    """The rows that wait for one model.

    Args:
        forward: rows to numbers; called in one thread.
        rows: most of one pass.
        tokens: most of one pass, padding included; a longer row gets a pass of its own.
        wait_s: how long a row waits for others.
        most_waiting: rows, those of the pass that runs among them.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[Sequence[int]]], list[float]],
        *,
        rows: int,
        tokens: int,
        wait_s: float,
        most_waiting: int,
    ) -> None:
        self._forward, self._rows, self._tokens = forward, rows, tokens
        self._wait_s, self._most_waiting = wait_s, most_waiting
        self._waiting: list[_Waiting] = []
        self._unanswered = 0
        self._some = asyncio.Event()
        self._enough = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forward")

    async def score(self, row: Sequence[int]) -> float:
        """The number of a row.

        Raises:
            TooManyWaiting: it should come again.
            ScoringFailed: the forward pass raised for this row alone.
            NotFinite: there is none.
        """
        if self._unanswered >= self._most_waiting:
            raise TooManyWaiting(f"{self._unanswered} answers wait already")
        mine = self._queue(row)
        self._unanswered += 1
        try:
            number = await mine.number
        finally:
            self._unanswered -= 1
        if not math.isfinite(number):
            raise NotFinite(f"the model gave {number}")
        return number

    def _queue(self, row: Sequence[int]) -> _Waiting:
        mine = _Waiting(row, asyncio.get_running_loop().create_future())
        self._waiting.append(mine)
        self._some.set()
        if len(self._waiting) >= self._rows:
            self._enough.set()
        return mine

    async def run(self) -> None:
        """Works until it is cancelled."""
        try:
            while True:
                await self._some.wait()
                await self._until_enough()
                waiting, self._waiting = self._waiting, []
                self._some.clear()
                self._enough.clear()
                for batch in divide(waiting, self._rows, self._tokens):
                    await self._pass(batch)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _until_enough(self) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._enough.wait()
        except TimeoutError:
            pass

    async def _pass(self, batch: Sequence[_Waiting]) -> None:
        """One forward pass for those who still wait; if it raises, one for each alone."""
        asked = [each for each in batch if not each.number.done()]
        if not asked:
            return
        try:
            numbers = await asyncio.get_running_loop().run_in_executor(self._thread, self._timed, asked)
        except Exception as error:  # noqa: BLE001 - the model is a seam: out of memory, an index, ...
            if len(asked) == 1:
                _settle(asked[0], ScoringFailed(f"the forward pass failed: {error!r}"[:300]))
                return
            for each in asked:
                await self._pass([each])
            return
        for each, number in zip(asked, numbers, strict=True):
            _settle(each, number)

    def _timed(self, asked: Sequence[_Waiting]) -> list[float]:
        rows = [each.row for each in asked]
        with metrics.PASS_SECONDS.time():
            numbers = self._forward(rows)
        tokens = sum(map(len, rows))
        metrics.PASS_ROWS.observe(len(rows))
        metrics.TOKENS.inc(tokens)
        metrics.PADDING.inc(len(rows) * max(map(len, rows)) - tokens)
        return numbers


def _settle(waiting: _Waiting, outcome: float | Exception) -> None:
    """Unless whoever waited has gone."""
    if waiting.number.done():
        return
    if isinstance(outcome, Exception):
        waiting.number.set_exception(outcome)
    else:
        waiting.number.set_result(outcome)


def divide(waiting: Sequence[_Waiting], rows: int, tokens: int) -> Iterator[list[_Waiting]]:
    """Cuts what waits into passes, short rows first.

    Args:
        waiting: one or more.
        rows: most of one pass.
        tokens: most of one pass, padding included, unless one row alone is longer.
    """
    batch: list[_Waiting] = []
    for each in sorted(waiting, key=lambda one: len(one.row)):
        length = len(each.row)
        is_full = len(batch) == rows or (len(batch) + 1) * length > tokens
        if batch and (is_full or length.bit_length() != len(batch[0].row).bit_length()):
            yield batch
            batch = []
        batch.append(each)
    yield batch
