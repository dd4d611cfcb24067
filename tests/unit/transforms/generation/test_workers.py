"""Which worker is taken, who comes and goes, and what becomes of what a worker was asked."""

import asyncio
import contextlib
import time

import aiohttp
import pytest
from aiohttp import web

from schemas.errors import EngineError, EngineLost, EngineUnavailable
from schemas.workers import WorkerEntry
from transforms.generation import workers as module
from transforms.generation.quarantine import Case
from transforms.generation.workers import AbandonedError, Worker, Workers, choose

FROZEN_AFTER_S = 0.3


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.1)


class Server:
    """Only ``/health``: good, bad, or silent for as long as ``health`` says so."""

    def __init__(self):
        self.health, self.looks = "good", 0

    async def _answer(self, request):
        self.looks += 1
        while self.health == "silent":
            await asyncio.sleep(0.01)
        return web.Response(status=200 if self.health == "good" else 503)

    async def __aenter__(self):
        application = web.Application()
        application.router.add_get("/health", self._answer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return self

    async def close(self):
        await self._runner.cleanup()

    async def __aexit__(self, *_):
        self.health = "good"
        await self.close()


@contextlib.asynccontextmanager
async def known(*urls):
    async with aiohttp.ClientSession() as session:
        workers = Workers(urls, session, 0, FROZEN_AFTER_S)
        yield workers
        workers.close()


async def until(condition, timeout_s=30.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def says(url, state="up", max_num_seqs=64):
    return WorkerEntry(url=url, state=state, version=1, max_num_seqs=max_num_seqs)


async def forever():
    await asyncio.sleep(3600)


# ---- which one is taken -----------------------------------------------------------------------------


def some_workers(count=4):
    return [Worker(f"http://{number}") for number in range(count)]


def test_the_preferred_worker_is_taken_unless_it_is_overloaded():
    workers = some_workers()
    belongs = choose(workers, (1, 2), 4)
    other = next(worker for worker in workers if worker is not belongs)
    assert choose(workers, (1, 2), 4, prefer=other.url) is other
    other.load = 100
    assert choose(workers, (1, 2), 4, prefer=other.url) is not other
    assert choose(workers, (1, 2), 4, prefer="http://gone") is choose(workers, (1, 2), 4)


def test_no_worker_is_given_more_than_its_engine_computes_while_another_has_room():
    workers = some_workers(2)
    belongs = choose(workers, (1, 2), 4)
    belongs.max_num_seqs = 16
    for worker in workers:
        worker.load = 16
    assert choose(workers, (1, 2), 4) is not belongs
    for worker in workers:
        worker.max_num_seqs = 16
    assert choose(workers, (1, 2), 4) in workers, "with all of them full they queue there"


def test_a_prefix_may_be_any_sequence_and_only_its_beginning_counts():
    workers = some_workers()
    prefix = list(range(64))
    assert choose(workers, prefix, 1) is choose(workers, (*prefix, 7, 8), 1)


@pytest.mark.timed
def test_a_hundred_workers_are_no_burden():
    workers = some_workers(100)
    started = time.perf_counter()
    for number in range(200):
        choose(workers, (number,), 8).load += 8
    assert (time.perf_counter() - started) / 200 < 0.001, "10 times what it takes on a slow core"


async def test_the_worker_of_the_last_turn_is_taken_again_while_it_is_up():
    async with Server() as one, Server() as two, known(one.url, two.url) as workers:
        for url in (one.url, two.url):
            async with workers.taken((1,), 1, (), prefer=url) as worker:
                assert worker.url == url
        workers.leave_out(workers._workers[one.url], "test")
        async with workers.taken((1,), 1, (), prefer=one.url) as worker:
            assert worker.url == two.url


# ---- who comes and goes -----------------------------------------------------------------------------


async def test_with_no_worker_known_a_request_waits_for_the_first_that_announces_itself():
    async with Server() as server, known() as workers:

        async def take():
            async with workers.taken((1,), 2, ()) as worker:
                return worker

        taking = asyncio.ensure_future(take())
        await asyncio.sleep(0.1)
        assert not taking.done()
        workers.heard(says(server.url))
        worker = await asyncio.wait_for(taking, 30)
        assert (worker.url, worker.max_num_seqs, worker.listed) == (server.url, 64, False)


async def test_a_worker_that_announces_itself_and_does_not_answer_is_never_taken():
    async with Server() as server, known(server.url) as workers:
        workers.heard(says("http://127.0.0.1:1"))
        await asyncio.sleep(0.3)
        assert [worker.url for worker in workers._up] == [server.url]


async def test_one_that_the_configuration_names_too_is_one_worker():
    async with Server() as server, known(f"{server.url}/") as workers:
        workers.heard(says(server.url, max_num_seqs=8))
        (worker,) = workers._workers.values()
        assert (worker.up, worker.listed, worker.max_num_seqs) == (True, True, 8)


async def test_a_worker_that_leaves_gets_no_more_and_is_forgotten_when_it_has_ended():
    async with Server() as server, known() as workers:
        workers.heard(says(server.url))
        await until(lambda: workers._up)
        async with workers.taken((1,), 2, ()) as worker:
            workers.heard(says(server.url, "leaving"))
            await asyncio.sleep(0.2)
            assert (workers._up, worker.gone) == ([], False), "what it answers may be finished"
            await server.close()
            await asyncio.sleep(0.3)
            assert workers._workers, "while it is asked"
        await until(lambda: not workers._workers)


async def test_a_worker_that_left_comes_back_under_its_address():
    async with Server() as server, known(server.url) as workers:
        workers.heard(says(server.url, "leaving"))
        await asyncio.sleep(0.3)
        assert not workers._up, "healthy, but leaving"
        workers.heard(says(server.url))
        await until(lambda: workers._up)


async def test_a_worker_that_is_down_and_not_announced_any_more_is_forgotten_others_are_not(monkeypatch):
    monkeypatch.setattr(module, "_FORGET_S", 0.3)
    async with Server() as healthy, Server() as ended, Server() as listed, known(listed.url) as workers:
        workers.heard(says(healthy.url))
        workers.heard(says(ended.url))
        await until(lambda: len(workers._up) == 3)
        await ended.close()
        await listed.close()
        await until(lambda: ended.url not in workers._workers)
        await asyncio.sleep(0.4)
        assert {*workers._workers} == {healthy.url, listed.url}


async def test_an_idle_worker_that_ends_is_left_out_before_a_request_finds_out():
    async with Server() as one, Server() as two, known(one.url, two.url) as workers:
        one.health = "bad"
        await until(lambda: [worker.url for worker in workers._up] == [two.url])
        one.health = "good"
        await until(lambda: len(workers._up) == 2)


# ---- frozen -----------------------------------------------------------------------------------------


async def test_a_frozen_worker_lets_go_of_its_requests_and_comes_back_by_itself():
    async with Server() as server, known(server.url) as workers:
        async with workers.taken((1,), 2, ()) as worker:
            server.health = "silent"
            with pytest.raises(EngineUnavailable, match="stopped answering"):
                await asyncio.wait_for(worker.guard(forever()), 30)
            with pytest.raises(EngineUnavailable):
                await asyncio.wait_for(worker.guard(forever()), 30)
        assert (workers._up, worker.deaths) == ([], 0), "that is no death"
        server.health = "good"
        await until(lambda: workers._up == [worker])
        assert await worker.guard(asyncio.sleep(0.01, "an answer")) == "an answer"


async def test_one_silent_look_is_not_frozen(capfd):
    async with Server() as server, known(server.url) as workers:
        (worker,) = workers._workers.values()
        await until(lambda: server.looks)
        server.health = "silent"
        await until(lambda: worker.silent_looks == 1)
        server.health = "good"
        await asyncio.sleep(2 * FROZEN_AFTER_S)
        assert (worker.up, worker.gone, worker.silent_looks) == (True, False, 0)
        assert "is silent" not in capfd.readouterr().out


async def test_an_answer_shows_that_the_worker_is_not_frozen():
    worker = Worker("http://one", silent_looks=2)
    assert await worker.guard(asyncio.sleep(0, "an answer")) == "an answer"
    assert worker.silent_looks == 0


async def fails(error):
    raise error


@pytest.mark.parametrize("error", [EngineLost("x"), EngineError("x"), TimeoutError("x")])
async def test_a_guard_changes_no_error_of_a_worker_that_stays(error):
    worker = Worker("http://one")
    with pytest.raises(type(error)):
        await worker.guard(fails(error))
    assert (worker.pace.in_flight, worker.pace.answers) == (0, 0)


async def test_what_a_leaving_worker_breaks_off_is_no_death():
    with pytest.raises(EngineUnavailable, match="as it had announced"):
        await Worker("http://one", leaving=True).guard(fails(EngineLost("x")))


async def test_a_guarded_request_can_be_cancelled():
    worker = Worker("http://one")
    asking = asyncio.ensure_future(worker.guard(forever()))
    await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert worker.pace.in_flight == 0


# ---- suspects ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def on_trial(workers, count):
    """The workers that so many suspects are tried at, as they are taken."""
    seated, tasks = [], []

    async def attempt():
        case = Case(suspected=True)
        async with workers.quarantine.turn(case), workers.taken((1,), 1, (), case=case) as worker:
            seated.append(worker.url)
            await forever()

    tasks = [asyncio.ensure_future(attempt()) for _ in range(count)]
    yield seated
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_suspect_is_tried_at_each_worker_and_the_others_wait():
    async with Server() as one, Server() as two, known(one.url, two.url) as workers:
        async with on_trial(workers, 5) as seated:
            await asyncio.sleep(0.1)
            assert sorted(seated) == sorted([one.url, two.url])
            assert workers.suspects_waiting == 3
            async with Server() as three:
                workers.heard(says(three.url))
                await until(lambda: len(seated) == 3)
                assert seated[2] == three.url
                assert workers.suspects_waiting == 2
        assert workers.suspects_waiting == 0


async def test_a_suspect_waits_if_its_free_worker_went_down_meanwhile():
    async with Server() as one, Server() as two, known(one.url, two.url) as workers, on_trial(workers, 1) as seated:
        await until(lambda: seated)
        (free,) = {one.url, two.url} - {*seated}
        case = Case(suspected=True)
        async with workers.quarantine.turn(case):
            workers.leave_out(workers._workers[free], "test")
            async with asyncio.timeout(30), workers.taken((1,), 1, (), case=case) as worker:
                assert worker.url == free, "it came back; the other one tries a suspect already"


async def test_a_drain_ends_the_wait_for_a_worker_that_is_not_there():
    async with known() as workers:
        asyncio.get_running_loop().call_later(0.1, workers.drain)
        with pytest.raises(AbandonedError):
            async with asyncio.timeout(30), workers.taken((1,), 1, ()):
                pass
