"""Suspects: who is tried, when, in which order, and who is guilty."""

import asyncio
import contextlib

import pytest

from transforms.generation import quarantine as module
from transforms.generation.quarantine import Case, Quarantine

MARGIN_S = 0.05


@pytest.fixture(autouse=True)
def short_margin(monkeypatch):
    monkeypatch.setattr(module, "_MARGIN_S", MARGIN_S)


@pytest.fixture
def quarantine():
    return Quarantine()


def suspect(began_s=0.0, ran_s=0.0):
    """A prompt under which an engine died, ``ran_s`` after its run had begun."""
    return Case(suspected=True, struck_at_s=began_s, struck_after_s=ran_s)


class Attempt:
    """One attempt at a prompt, as the answerer makes it: it ends when ``over`` is called or its engine dies."""

    def __init__(self, quarantine, case):
        self.case = case
        self.runs = False
        self._quarantine = quarantine
        self._over = asyncio.get_running_loop().create_future()
        self.task = asyncio.ensure_future(self._run())

    async def _run(self):
        async with self._quarantine.turn(self.case):
            with self._quarantine.running(self.case):
                self.runs = True
                died = await self._over
            return self._quarantine.convicts(self.case) if died else None

    async def end(self, *, died):
        """The answer comes, or the engine dies; returns whether the prompt is guilty."""
        self._over.set_result(died)
        return await self.task


async def started(quarantine, *cases):
    attempts = []
    for case in cases:
        attempts.append(Attempt(quarantine, case))
        await settle()
    return attempts


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_that_an_engine_died_under_are_suspects_and_none_is_guilty(quarantine):
    attempts = await started(quarantine, *(Case() for _ in range(3)))
    assert [await attempt.end(died=True) for attempt in attempts] == [False, False, False]
    assert all(attempt.case.suspected for attempt in attempts)


async def test_suspects_run_one_at_a_time_and_others_beside_them(quarantine):
    first, second, innocent = await started(quarantine, suspect(), suspect(), Case())
    assert (first.runs, second.runs, innocent.runs) == (True, False, True)
    await first.end(died=False)
    await settle()
    assert second.runs
    await second.end(died=False)
    await innocent.end(died=False)


async def test_as_many_run_as_there_are_workers_and_those_that_wait_are_counted(quarantine):
    quarantine.set_rooms(2)
    first, second, third, fourth = await started(quarantine, *(suspect() for _ in range(4)))
    assert [attempt.runs for attempt in (first, second, third, fourth)] == [True, True, False, False]
    assert quarantine.waiting == 2
    quarantine.set_rooms(3)
    await settle()
    assert third.runs
    assert not fourth.runs
    quarantine.set_rooms(1)
    await first.end(died=False)
    await settle()
    assert not fourth.runs, "two trials go on, and there is one worker"
    await second.end(died=False)
    await third.end(died=False)
    await settle()
    assert fourth.runs
    assert quarantine.waiting == 0
    await fourth.end(died=False)


async def test_a_worker_is_occupied_until_its_trial_is_over(quarantine):
    quarantine.set_rooms(2)
    (attempt,) = await started(quarantine, suspect())
    quarantine.seat(attempt.case, "http://one")
    innocent = Case()
    quarantine.seat(innocent, "http://two")
    assert quarantine.occupied == {"http://one"}
    await asyncio.sleep(2 * MARGIN_S)
    assert (quarantine.occupied, quarantine.is_on_trial(attempt.case)) == (set(), False)
    await attempt.end(died=False)


async def test_only_the_one_on_trial_is_guilty_of_the_second_death(quarantine):
    on_trial, beside = await started(quarantine, suspect(), Case())
    assert await on_trial.end(died=True) is True
    assert await beside.end(died=True) is False
    assert beside.case.suspected


async def test_the_newest_run_is_tried_first(quarantine):
    cases = [suspect(began_s=began_s) for began_s in (5.0, 1.0, 9.0, 4.0)]
    attempts = await started(quarantine, *cases)
    order = []
    for _ in cases:
        (running,) = [attempt for attempt in attempts if attempt.runs and not attempt.task.done()]
        order.append(running.case.struck_at_s)
        await running.end(died=False)
        await settle()
    assert order == [5.0, 9.0, 4.0, 1.0], "the first came when nobody else was there"


async def test_a_suspect_that_lives_long_enough_makes_room_and_is_not_guilty_of_a_later_death(quarantine):
    survivor, following = await started(quarantine, suspect(ran_s=0.1), suspect(ran_s=60.0))
    await asyncio.sleep(0.1)
    assert not following.runs, "it had run for as long when it was struck"
    await asyncio.sleep(2 * MARGIN_S)
    assert following.runs
    assert await survivor.end(died=True) is False
    assert survivor.case.suspected
    assert survivor.case.struck_after_s > 0.1 + MARGIN_S, "its next trial is longer"
    assert await following.end(died=True) is True


async def test_a_trial_goes_on_while_its_verdict_is_awaited(quarantine):
    case = suspect()
    async with quarantine.turn(case):
        with quarantine.running(case):
            pass
        await asyncio.sleep(3 * MARGIN_S)
        assert quarantine.convicts(case)


async def test_a_suspect_that_is_given_up_while_it_waits_does_not_keep_the_turn(quarantine):
    on_trial, cancelled, following = await started(quarantine, suspect(3), suspect(2), suspect(1))
    cancelled.task.cancel()
    await settle()
    await on_trial.end(died=False)
    await settle()
    assert following.runs
    await following.end(died=False)


async def test_a_suspect_that_is_given_up_as_its_turn_comes_passes_it_on(quarantine):
    on_trial, cancelled, following = await started(quarantine, suspect(3), suspect(2), suspect(1))
    quarantine._release(on_trial.case)
    cancelled.task.cancel()
    await settle()
    assert cancelled.task.cancelled()
    assert not cancelled.runs
    assert following.runs
    await following.end(died=False)
    await on_trial.end(died=False)


@pytest.mark.parametrize("error", [RuntimeError, TimeoutError, asyncio.CancelledError])
async def test_whatever_ends_an_attempt_ends_its_trial(quarantine, error):
    with contextlib.suppress(error):
        async with quarantine.turn(suspect()):
            raise error
    async with asyncio.timeout(30), quarantine.turn(suspect()):
        pass
