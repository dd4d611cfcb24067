"""Environments in their processes: what one does wrong costs its own sample, and never the pool."""

import asyncio
import contextlib
import time

import psutil
import pytest

from schemas.config import EnvironmentsConfig
from schemas.errors import EnvironmentFault
from schemas.prompts import EnvironmentSpec
from tests.unit.transforms.environments import bad_environments
from transforms.environments import processes
from transforms.environments.processes import EnvironmentProcesses
from transforms.environments.registry import Answer

CONFIG = EnvironmentsConfig(step_timeout_s=0.5, modules=(bad_environments.MODULE,))
ANSWER = Answer(turn=1, text="5", token_ids=(11, 2))


@pytest.fixture(autouse=True)
def _little_grace(monkeypatch):
    monkeypatch.setattr(processes, "_GRACE_S", 0.5)


@contextlib.asynccontextmanager
async def environments(config=CONFIG):
    opened = EnvironmentProcesses(config)
    try:
        yield opened
    finally:
        await opened.close()


def spec(manner, **arguments):
    return EnvironmentSpec(name="misbehaving", args={"manner": manner, **arguments})


async def step_of(opened, manner):
    """What comes of one step: the step, or reason and detail."""
    try:
        async with opened.opened(spec(manner)) as instance:
            return await instance.step(ANSWER)
    except EnvironmentFault as fault:
        return fault.reason, fault.detail


async def test_what_goes_wrong_in_an_environment_is_told_and_touches_no_other():
    async with environments() as opened, opened.opened(spec("is_fine")) as neighbour:
        for manner, reason, detail in (
            ("raises", "environment_error", "LookupError: no such thing"),
            ("exits", "environment_error", "SystemExit: 3"),
            ("awaits", "environment_timeout", "step took longer than 0.5 s"),
            ("returns_a_dict", "environment_error", "returned dict, expected a Step"),
            ("says_nothing", "environment_error", "neither done nor a message"),
            ("gives_nan", "environment_error", "reward"),
            ("gives_infinity_unchecked", "environment_error", "reward"),
            ("raises_half_a_character", "environment_error", "LookupError: ?"),
            ("says_half_a_character", "environment_error", "surrogates not allowed"),
            ("talks_too_much", "environment_error", "at most 1048576 are carried"),
        ):
            got, said = await step_of(opened, manner)
            assert (manner, got) == (manner, reason)
            assert detail in said
        assert (await step_of(opened, "prints")).reward == 1.0, "what is printed garbles no reply"
        step = await neighbour.step(ANSWER)
        assert (step.reward, step.parts) == (0.5, {"fine": 1.0})


async def test_a_fault_at_the_beginning_is_one_too():
    async with environments() as opened:
        with pytest.raises(EnvironmentFault, match="LookupError"):
            async with opened.opened(spec("raises", at_reset=True)):
                pytest.fail("it did not begin")


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ("blocks", "environment_timeout"),
        ("ignores_its_end", "environment_timeout"),
        ("dies", "environment_error"),
        ("garbles_the_replies", "environment_error"),
    ],
)
@pytest.mark.timed
async def test_a_process_that_is_blocked_or_dead_is_replaced_and_the_pool_goes_on(manner, reason):
    async with environments() as opened, opened.opened(spec("is_fine")) as neighbour:
        late_s = 0.0
        stepping = asyncio.ensure_future(step_of(opened, manner))
        while not stepping.done():
            before = time.monotonic()
            await asyncio.sleep(0.01)
            late_s = max(late_s, time.monotonic() - before)
        assert stepping.result()[0] == reason
        assert late_s < 0.7, "the event loop of the pool was held up"
        with pytest.raises(EnvironmentFault, match="has ended"):
            await neighbour.step(ANSWER)
        assert (await step_of(opened, "is_fine")).reward == 0.5
        await asyncio.wait_for(neighbour._process._process.wait(), 30)  # nothing is left of it


async def test_an_environment_that_blocks_touches_no_other_environment():
    scripted = EnvironmentSpec(name="scripted", args={"says": ["1"]})
    async with environments() as opened, opened.opened(scripted) as neighbour:
        assert (await step_of(opened, "blocks"))[0] == "environment_timeout"
        assert [message.content for message in (await neighbour.step(ANSWER)).messages] == ["1"]


async def test_environments_are_divided_among_processes():
    async with environments(CONFIG.model_copy(update={"processes": 2})) as opened:
        async with opened.opened(spec("is_fine")) as one, opened.opened(spec("is_fine")) as other:
            assert one._process is not other._process
        async with opened.opened(spec("is_fine")) as again:
            assert again._process in (one._process, other._process), "they are used again"


async def test_close_ends_the_processes_and_a_module_that_fails_there_is_a_fault():
    async with environments() as opened, opened.opened(spec("is_fine")) as instance:
        pid = instance._process._process.pid
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
    with pytest.raises(EnvironmentFault, match="ended with 1 at its start"):
        async with environments(EnvironmentsConfig(modules=("no_such_module",))) as opened, opened.opened(spec("dies")):
            pytest.fail("it did not begin")


async def test_instances_are_let_go_of():
    async with environments() as opened:
        for _ in range(3):
            await step_of(opened, "is_fine")
        assert [process.instances for process in opened._processes.values()] == [0]


async def test_a_process_that_does_not_get_ready_or_cannot_be_started_is_a_fault(monkeypatch):
    monkeypatch.setattr(processes, "_START_S", 0.01)
    async with environments() as opened:
        assert (await step_of(opened, "is_fine"))[0] == "environment_timeout"
    monkeypatch.setattr(processes.sys, "executable", "/no/such/python")
    async with environments() as opened:
        reason, detail = await step_of(opened, "is_fine")
        assert (reason, detail.split(":")[0]) == ("environment_error", "no process could be started")
