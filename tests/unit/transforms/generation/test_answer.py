"""One prompt against simulated engines: what is tried again, where, and what is given up."""

import asyncio
import contextlib
import json
import socket
from datetime import UTC, datetime
from types import SimpleNamespace

import aiohttp
import pytest

from pipelines.local.tiny_model import build_tiny_model
from schemas import traces
from schemas.config import RolloutConfig, RunConfig
from schemas.dead_letters import DeadLetter
from schemas.identity import GroupId
from schemas.trajectories import Group
from tests.support.simulated_engine import SimulatedEngine
from tests.support.spans import tracing
from transforms.generation import answer, quarantine
from transforms.generation import workers as workers_module
from transforms.generation.answer import Answerer
from transforms.generation.engine import open_session
from transforms.generation.request import PromptRecord
from transforms.generation.tokenizer import Tokenizer
from transforms.generation.workers import AbandonedError, Worker, Workers, choose
from transforms.rewards import registry

registry.load()
PROMPT = {"token_ids": [7, 8], "reward": {"name": "last_number", "args": {"answer": "5"}}, "group_size": 2}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(str(build_tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def engine():
    with SimulatedEngine() as engine:
        yield engine


async def ask(tokenizer, *urls, value=PROMPT, min_version=0, timeout_s=30.0, until=None, trace=None, key=None):
    config = RunConfig(rollout=RolloutConfig(workers=urls, attempts=3))
    async with open_session(timeout_s, key) as session:
        workers = Workers(urls, session, 0)
        answerer = Answerer(config, tokenizer, session, workers)
        record = PromptRecord(GroupId(0, 3), json.dumps(value).encode(), datetime.now(UTC), trace=trace)
        answering = asyncio.ensure_future(answerer.answer(record, min_version))
        if until:
            await until(workers)
        return await asyncio.wait_for(answering, 60)


async def test_a_prompt_is_answered_and_asks_for_its_version(tokenizer, engine):
    engine.version = 4
    group = await ask(tokenizer, engine.url, min_version=4)
    assert isinstance(group, Group)
    assert (group.id, len(group.samples), {sample.weight_version_min for sample in group.samples}) == ((0, 3), 2, {4})
    assert [asked.min_version for asked in engine.requests] == [4]


async def test_every_attempt_is_a_span_that_its_worker_is_told(tokenizer, engine, tmp_path):
    engine.faults.append("error")
    with tracing(tmp_path) as read:
        trace = traces.begin("demo/0/3", None, "test")
        group = await ask(tokenizer, engine.url, trace=trace)
        failed, answered, whole = sorted(read(), key=lambda span: (span.name, span.began_ns))
    assert group.trace == trace, "what comes later goes below the prompt, not below its attempts"
    assert (whole.name, whole.parent_id, whole.fault) == ("generate", trace.span_id, None)
    assert {failed.name, answered.name} == {"engine"}
    assert {failed.parent_id, answered.parent_id} == {whole.span_id}
    assert failed.fault.startswith("EngineLost")
    assert answered.fault is None
    facts = {"worker": engine.url, "samples": 2, "prompt_tokens": 2}
    facts["response_tokens"] = sum(len(sample.response_token_ids) for sample in group.samples)
    assert answered.attributes == {f"asyncflow.{name}": value for name, value in facts.items()}
    told = [f"00-{trace.trace_id}-{span.span_id}-01" for span in (failed, answered)]
    assert [asked.traceparent for asked in engine.requests] == told


async def test_a_prompt_that_is_dead_says_so_in_its_span(tokenizer, engine, tmp_path):
    with tracing(tmp_path) as read:
        await ask(tokenizer, engine.url, value={"text": "1"}, trace=traces.begin("demo/0/3", None, "test"))
        (span,) = read()
    assert (span.name, span.fault) == ("generate", "bad_record")


async def test_without_a_trace_no_worker_is_told_of_one(tokenizer, engine):
    await ask(tokenizer, engine.url)
    assert [asked.traceparent for asked in engine.requests] == [None]


@pytest.mark.parametrize(
    "fault",
    ["error", "garbage", "close", "nan", "short", "no_versions", "version_zero", "unknown_version", "abort"],
)
async def test_a_fault_is_tried_again_on_the_same_worker_if_there_is_no_other(tokenizer, engine, fault):
    engine.faults.append(fault)
    assert isinstance(await ask(tokenizer, engine.url), Group)
    assert len(engine.requests) == 2


async def test_a_locked_worker_is_shown_the_key(tokenizer, engine):
    engine.api_key = "sesame"
    assert isinstance(await ask(tokenizer, engine.url, key="sesame"), Group)


async def test_a_prompt_waits_while_workers_refuse_the_key(tokenizer, engine):
    engine.api_key = "sesame"

    async def turned_away(workers):
        while engine.turned_away < 4:  # more often than attempts may fail
            await asyncio.sleep(0.01)
        engine.api_key = ""

    assert isinstance(await ask(tokenizer, engine.url, until=turned_away), Group)


async def test_a_failed_prompt_goes_to_another_worker(tokenizer):
    with SimulatedEngine(always={7: "error"}) as broken, SimulatedEngine() as good:
        for _ in range(4):
            assert isinstance(await ask(tokenizer, broken.url, good.url), Group)
        assert len(good.requests) == 4
        assert len(broken.requests) in (0, 4), "its prefix belongs to one of the two"


async def test_a_hanging_engine_is_given_up_after_the_time(tokenizer, engine):
    engine.faults.append("hang")
    assert isinstance(await ask(tokenizer, engine.url, timeout_s=0.3), Group)


async def test_after_all_attempts_a_prompt_is_a_dead_letter(tokenizer, engine):
    engine.always[7] = "error"
    letter = await ask(tokenizer, engine.url)
    assert isinstance(letter, DeadLetter)
    assert (letter.stage, letter.reason, letter.group, letter.topic) == (
        "generate",
        "engine_failed",
        (0, 3),
        "demo.prompts",
    )
    assert "engine is broken" in letter.detail
    assert len(engine.requests) == 3


async def test_a_refusal_is_a_dead_letter_at_once_with_the_engines_words(tokenizer, engine):
    engine.faults.append("refuse")
    letter = await ask(tokenizer, engine.url)
    assert letter.reason == "engine_refused"
    assert "max_tokens is too large" in letter.detail
    assert len(engine.requests) == 1


async def test_a_bad_prompt_never_reaches_an_engine(tokenizer, engine):
    letter = await ask(tokenizer, engine.url, value={"text": "1"})
    assert letter.reason == "bad_record"
    assert engine.requests == []


async def test_engines_without_weights_use_up_no_attempt(tokenizer, engine):
    engine.faults.extend(["unavailable"] * 4)
    assert isinstance(await ask(tokenizer, engine.url), Group)
    assert len(engine.requests) == 5


async def test_while_no_worker_is_up_a_prompt_waits(tokenizer, monkeypatch):
    monkeypatch.setattr(workers_module, "_LONGEST_PAUSE_S", 0.2)
    port = _free_port()

    async def start_late(workers):
        await asyncio.sleep(1.0)
        started.__enter__()

    started = SimulatedEngine(port=port)
    try:
        assert isinstance(await ask(tokenizer, f"http://127.0.0.1:{port}", until=start_late), Group)
    finally:
        started.__exit__()


async def test_a_drain_lets_go_of_prompts_that_wait_for_a_worker(tokenizer):
    async def drain(workers):
        await asyncio.sleep(0.3)
        workers.drain()

    with pytest.raises(AbandonedError):
        await ask(tokenizer, f"http://127.0.0.1:{_free_port()}", until=drain)


async def test_a_prompt_under_which_two_engines_died_is_a_dead_letter(tokenizer, monkeypatch):
    """A server that closes every connection, and its health check too, is one that has just died."""
    monkeypatch.setattr(workers_module, "_LONGEST_PAUSE_S", 0.1)
    with SimulatedEngine(always={7: "close"}) as one:
        monkeypatch.setattr(Workers, "is_healthy", _just_died)
        letter = await ask(tokenizer, one.url)
    assert letter.reason == "engine_killed"
    assert len(one.requests) == 2


@contextlib.asynccontextmanager
async def supervised(*engines):
    """Revives engines that died; yields the urls of those revived."""
    revived = []

    async def supervise():
        while True:
            await asyncio.sleep(0.02)
            for engine in [engine for engine in engines if engine.died]:
                await asyncio.sleep(0.3)
                engine.revive()
                revived.append(engine.url)

    supervising = asyncio.ensure_future(supervise())
    yield revived
    supervising.cancel()


@contextlib.asynccontextmanager
async def answering(tokenizer, engines, firsts, attempts=1):
    """The tasks that answer prompts, one that begins with each of these tokens, and the workers."""
    urls = tuple(engine.url for engine in engines)
    config = RunConfig(rollout=RolloutConfig(workers=urls, attempts=attempts))
    async with aiohttp.ClientSession() as session:
        workers = Workers(urls, session, 0)
        answerer = Answerer(config, tokenizer, session, workers)
        tasks = []
        for offset, first in enumerate(firsts):
            value = json.dumps({**PROMPT, "token_ids": [first, offset % 6 + 6]}).encode()
            record = PromptRecord(GroupId(0, offset), value, datetime.now(UTC))
            tasks.append(asyncio.ensure_future(answerer.answer(record, 0)))
            await asyncio.sleep(0.01)
        yield tasks, workers
        for task in tasks:
            task.cancel()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(workers_module, "_LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(quarantine, "_MARGIN_S", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_a_poison_prompt_costs_two_engines_and_its_neighbours_are_answered(tokenizer, monkeypatch):
    """They are in flight at both deaths: tried before the poison and still being answered beside it."""
    poison, neighbour = 8, 7
    pauses = iter([5.0])  # the poison, which fails first, comes back last
    monkeypatch.setattr(answer, "random", SimpleNamespace(uniform=lambda *_: next(pauses, 1.0)))
    with SimulatedEngine(always={poison: "die"}, slow_s={poison: 0.1, neighbour: 1.2}) as engine:
        async with (
            supervised(engine) as revived,
            answering(tokenizer, [engine], [poison, *[neighbour] * 3]) as (tasks, _),
        ):
            outcomes = await asyncio.wait_for(asyncio.gather(*tasks), 60)
    assert outcomes[0].reason == "engine_killed"
    assert all(isinstance(outcome, Group) for outcome in outcomes[1:]), "with a single attempt allowed"
    assert len(revived) == 2
    assert len(engine.requests) == 2 + 3 * 3


@pytest.mark.usefixtures("impatient")
async def test_workers_that_die_together_cost_no_prompt(tokenizer):
    with SimulatedEngine(mean_s=0.3, seed=1) as one, SimulatedEngine(mean_s=0.3, seed=2) as two:
        async with supervised(one, two) as revived, answering(tokenizer, [one, two], [7] * 12) as (tasks, _):
            one.die()
            two.die()
            outcomes = await asyncio.wait_for(asyncio.gather(*tasks), 60)
    assert {one.url, two.url} == set(revived)
    assert all(isinstance(outcome, Group) for outcome in outcomes)


@pytest.mark.usefixtures("impatient")
async def test_a_drain_lets_go_of_suspects_that_wait_for_their_turn(tokenizer):
    with SimulatedEngine(slow_s={7: 5.0}) as engine:
        async with answering(tokenizer, [engine], [7] * 4) as (tasks, workers):
            await _until(lambda: len(engine.requests) == 4)
            engine.die()
            await asyncio.sleep(0.5)
            workers.drain()
            outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    assert [type(outcome) for outcome in outcomes] == [AbandonedError] * 4


async def _until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_worker_that_is_up_again_has_died_all_the_same(tokenizer, engine):
    async with aiohttp.ClientSession() as session:
        workers = Workers([engine.url], session, 0)
        worker = workers._workers[engine.url]
        assert not await workers.has_died(worker, 0, "500")
        engine.die()
        await _until(lambda: engine.died)
        assert await workers.has_died(worker, 0, "500")
        engine.revive()
        await _until(lambda: worker.up)
        assert await workers.has_died(worker, 0, "500"), "for one that was in flight before"
        assert not await workers.has_died(worker, 1, "500")
        assert worker.deaths == 1


async def _just_died(self, worker):
    return False


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_prefix_belongs_to_one_worker_while_that_is_not_overloaded():
    workers = [Worker(f"http://{name}") for name in "abcd"]
    first = choose(workers, (1, 2, 3), 4)
    assert all(choose(workers, (1, 2, 3), 4) is first for _ in range(5))
    for worker in workers:
        worker.load = 16
    assert choose(workers, (1, 2, 3), 4) is first
    first.load = 40
    assert choose(workers, (1, 2, 3), 4) is not first


def test_many_prefixes_spread_over_the_workers():
    workers = [Worker(f"http://{name}") for name in "abcd"]
    for prefix in range(400):
        choose(workers, (prefix,), 4).load += 4
    loads = [worker.load for worker in workers]
    assert sum(loads) == 1600
    assert max(loads) <= 1.3 * 400


def test_one_prefix_spreads_when_all_prompts_share_it():
    workers = [Worker(f"http://{name}") for name in "abcd"]
    for _ in range(400):
        choose(workers, (1, 2), 4).load += 4
    assert max(worker.load for worker in workers) <= 1.3 * 400
