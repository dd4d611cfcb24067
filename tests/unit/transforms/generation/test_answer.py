"""One prompt against simulated engines: what is tried again, where, and what is given up."""

import asyncio
import json
import socket
from datetime import UTC, datetime

import aiohttp
import pytest

from schemas.config import RolloutConfig, RunConfig
from schemas.dead_letters import DeadLetter
from schemas.identity import GroupId
from schemas.trajectories import Group
from tests.support.simulated_engine import SimulatedEngine
from tests.support.tiny_model import build_tiny_model
from transforms.generation import workers as workers_module
from transforms.generation.answer import Answerer
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


async def ask(tokenizer, *urls, value=PROMPT, min_version=0, timeout_s=30.0, until=None):
    config = RunConfig(rollout=RolloutConfig(workers=urls, attempts=3))
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        workers = Workers(urls, session, 0)
        answerer = Answerer(config, tokenizer, session, workers)
        record = PromptRecord(GroupId(0, 3), json.dumps(value).encode(), datetime.now(UTC))
        answering = asyncio.ensure_future(answerer.answer(record, min_version))
        if until:
            await until(workers)
        return await asyncio.wait_for(answering, 20)


async def test_a_prompt_is_answered_and_asks_for_its_version(tokenizer, engine):
    engine.version = 4
    group = await ask(tokenizer, engine.url, min_version=4)
    assert isinstance(group, Group)
    assert (group.id, len(group.samples), {sample.weight_version_min for sample in group.samples}) == ((0, 3), 2, {4})
    assert [asked.min_version for asked in engine.requests] == [4]


@pytest.mark.parametrize(
    "fault",
    ["error", "garbage", "close", "nan", "short", "no_versions", "version_zero", "unknown_version", "abort"],
)
async def test_a_fault_is_tried_again_on_the_same_worker_if_there_is_no_other(tokenizer, engine, fault):
    engine.faults.append(fault)
    assert isinstance(await ask(tokenizer, engine.url), Group)
    assert len(engine.requests) == 2


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
        monkeypatch.setattr(Workers, "is_healthy", _die_then_recover())
        letter = await ask(tokenizer, one.url)
    assert letter.reason == "engine_killed"
    assert len(one.requests) == 2


def _die_then_recover():
    answers = iter([False, True] * 10)

    async def is_healthy(self, worker):
        return next(answers)

    return is_healthy


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
