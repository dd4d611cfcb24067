"""The circuit breaker: when it opens, who may try, and when it closes."""

import asyncio

import pytest

from schemas.errors import ServiceError
from transforms.rewards.breaker import Breaker


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker("judge:test", open_after=3, open_s=5.0, clock=clock)


async def fail(breaker):
    with pytest.raises(ServiceError):
        async with breaker.passage() as probe:
            raise ServiceError("down")
    return probe


async def open_it(breaker):
    for _ in range(3):
        await fail(breaker)


async def is_let_through(breaker):
    async def go():
        async with breaker.passage() as probe:
            return probe

    try:
        return await asyncio.wait_for(go(), 0.05)
    except TimeoutError:
        return None


async def test_failures_in_a_row_open_it_and_an_answer_in_between_does_not(breaker):
    await fail(breaker)
    await fail(breaker)
    breaker.works()
    await fail(breaker)
    await fail(breaker)
    assert not breaker.is_open
    await fail(breaker)
    assert breaker.is_open
    assert await is_let_through(breaker) is None


async def test_one_probe_at_a_time_and_an_answer_closes_it(breaker, clock):
    await open_it(breaker)
    clock.now += 5.0
    async with breaker.passage() as probe:
        assert probe
        waiting = asyncio.create_task(is_let_through(breaker))
        await asyncio.sleep(0)
        assert not waiting.done()
        breaker.works()
        assert await waiting is False, "it went as soon as the probe was answered, and is none itself"
    assert not breaker.is_open
    assert breaker.worked_s == clock.now


async def test_a_failed_probe_doubles_the_pause_up_to_a_minute(breaker, clock):
    await open_it(breaker)
    for pause in (5.0, 10.0, 20.0, 40.0, 60.0, 60.0):
        clock.now += pause - 0.1
        assert await is_let_through(breaker) is None, pause
        clock.now += 0.1
        assert await fail(breaker) is True, pause
    breaker.works()
    await open_it(breaker)
    clock.now += 5.0
    assert await is_let_through(breaker) is True, "the pause is the first one again"


async def test_a_probe_that_is_cancelled_leaves_its_place_to_the_next(breaker, clock):
    await open_it(breaker)
    clock.now += 5.0
    held = asyncio.Event()

    async def probe_for_ever():
        async with breaker.passage():
            held.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(probe_for_ever())
    await held.wait()
    assert await is_let_through(breaker) is None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await is_let_through(breaker) is True


async def test_late_failures_of_earlier_requests_do_not_prolong_it(breaker, clock):
    await open_it(breaker)
    clock.now += 4.0
    breaker.failed("sent before it opened")
    clock.now += 1.0
    assert await is_let_through(breaker) is True


async def test_a_probe_that_fails_after_an_older_request_was_answered_does_not_open_it_again(breaker, clock):
    await open_it(breaker)
    clock.now += 5.0

    async def probe():
        async with breaker.passage() as is_probe:
            assert is_probe
            breaker.works()
            raise ServiceError("too late")

    with pytest.raises(ServiceError, match="too late"):
        await probe()
    assert not breaker.is_open
