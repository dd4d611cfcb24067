"""What waits goes through the model together, and what happens to one row happens to no other."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager

import pytest

from pipelines.reward_model.batcher import Batcher, NotFinite, ScoringFailed, TooManyWaiting, divide


class Model:
    """The number of a row is its sum."""

    def __init__(self, seconds=0.0):
        self.passes = []
        self.seconds = seconds
        self.go_on = threading.Event()
        self.go_on.set()

    async def is_asked(self):
        """Waits for the first pass to begin."""
        while not self.passes:
            await asyncio.sleep(0.01)

    def __call__(self, rows):
        self.passes.append([len(row) for row in rows])
        assert self.go_on.wait(60)
        time.sleep(self.seconds)
        if any(row[0] == 666 for row in rows):
            raise RuntimeError("out of memory")
        return [float("nan") if row[0] == 13 else float(sum(row)) for row in rows]


@asynccontextmanager
async def batching(model, **settings):
    batcher = Batcher(model, **{"rows": 4, "tokens": 1000, "wait_s": 0.05, "most_waiting": 100, **settings})
    working = asyncio.create_task(batcher.run())
    try:
        yield batcher
    finally:
        working.cancel()


async def test_what_waits_goes_together_and_enough_rows_do_not_wait():
    model = Model()
    async with batching(model, wait_s=60) as batcher, asyncio.timeout(60):
        assert await asyncio.gather(*(batcher.score([each, 1]) for each in range(4))) == [1.0, 2.0, 3.0, 4.0]
    async with batching(model, wait_s=0.2) as batcher:
        started = time.monotonic()
        assert await batcher.score([5, 5]) == 10.0
        assert time.monotonic() - started > 0.19, "one alone waits for others"
    assert model.passes == [[2, 2, 2, 2], [2]]


async def test_rows_gather_while_a_pass_runs():
    model = Model()
    model.go_on.clear()
    async with batching(model, wait_s=0.0) as batcher:
        first = asyncio.create_task(batcher.score([1]))
        await model.is_asked()
        others = [asyncio.create_task(batcher.score([each])) for each in range(4)]
        await asyncio.sleep(0.05)
        model.go_on.set()
        assert await asyncio.gather(first, *others) == [1.0, 0.0, 1.0, 2.0, 3.0]
    assert model.passes == [[1], [1, 1, 1, 1]]


async def test_a_row_that_breaks_the_pass_breaks_no_other():
    async with batching(Model()) as batcher:
        asked = (batcher.score(row) for row in ([1, 1], [666, 1], [3, 1], [13, 1]))
        got = await asyncio.gather(*asked, return_exceptions=True)
    assert (got[0], got[2]) == (2.0, 4.0)
    assert isinstance(got[1], ScoringFailed)
    assert "out of memory" in str(got[1])
    assert isinstance(got[3], NotFinite)


async def test_too_many_are_told_to_come_again_and_who_went_away_is_left_out():
    model = Model()
    model.go_on.clear()
    async with batching(model, wait_s=0.0, most_waiting=3) as batcher:
        first = asyncio.create_task(batcher.score([1]))
        await model.is_asked()
        gone, stays = (asyncio.create_task(batcher.score([each])) for each in (7, 8))
        await asyncio.sleep(0.05)
        with pytest.raises(TooManyWaiting, match="3 answers wait"):  # the one in the pass is among them
            await batcher.score([9])
        gone.cancel()
        model.go_on.set()
        assert await asyncio.gather(first, stays) == [1.0, 8.0]
    assert model.passes == [[1], [1]]


def test_passes_hold_rows_of_like_length_within_rows_and_tokens():
    class Row:
        def __init__(self, length):
            self.row = [0] * length

    lengths = [3, 100, 2, 7, 120, 90, 4000, 5, 6, 110, 2, 3, 3]
    passes = [[len(each.row) for each in batch] for batch in divide([Row(length) for length in lengths], 4, 300)]
    assert passes == [[2, 2, 3, 3], [3], [5, 6, 7], [90, 100], [110, 120], [4000]]
    for batch in passes:
        assert len(batch) == 1 or len(batch) * max(batch) <= 300
        assert max(batch) < 2 * min(batch)
