"""Environments as the pool sees them: instances in processes that can be killed.

    Episode ──opened()──► Instance ──step──► Order ══pipe══► host process (own session, limits, no output)
                             ▲                                   │ many instances, one event loop
                             └── Step or EnvironmentFault ◄──────┘

An environment that raises, awaits for too long or returns rubbish costs its own sample the reward. One
that blocks its process, or kills it, takes the instances beside it with it, all of the same environment:
the process is killed from outside and a new one takes the next instances. The pool's event loop never
waits for longer than the limit.
"""

import asyncio
import atexit
import contextlib
import functools
import itertools
import os
import sys
from collections.abc import AsyncIterator
from typing import Final

import structlog

from schemas.config import EnvironmentsConfig
from schemas.errors import EnvironmentFault
from schemas.prompts import EnvironmentSpec
from transforms.environments import host
from transforms.environments.host import Order, Reply
from transforms.environments.registry import Answer, Step
from transforms.rewards.killing import kill_tree

_LOG = structlog.get_logger(__name__)
_START_S: Final = 60.0
_GRACE_S: Final = 2.0
"""How much longer than its limit an order may take before its process counts as blocked."""


class _Process:
    """One host process and the orders that it has not replied to."""

    def __init__(self, process: asyncio.subprocess.Process, config: EnvironmentsConfig) -> None:
        self._process = process
        self._limit_s = config.step_timeout_s + _GRACE_S
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._kill = functools.partial(kill_tree, process.pid)
        atexit.register(self._kill)  # nothing is left behind by a pipeline that ends
        self._reading = asyncio.create_task(self._read())
        self.instances = 0
        """How many live in it."""
        self.is_alive = True
        """Whether it takes orders."""

    @classmethod
    async def start(cls, config: EnvironmentsConfig) -> "_Process":
        """A process that is ready for orders.

        Raises:
            EnvironmentFault: it ended before; its log says why.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", host.__name__),
                config.model_dump_json(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=2 * host.LONGEST_REPLY_BYTES,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except OSError as error:
            raise EnvironmentFault("environment_error", f"no process could be started: {error}") from error
        await _wait_until_ready(process)
        return cls(process, config)

    def send(self, order: Order) -> None:
        """Gives an order; nobody waits for its reply."""
        if self.is_alive and self._process.stdin is not None:
            self._process.stdin.write(order.model_dump_json().encode() + b"\n")

    async def ask(self, order: Order) -> Step | None:
        """Gives an order and waits for its reply.

        Raises:
            EnvironmentFault: the environment's, or that of its process.
        """
        if not self.is_alive:
            raise self._ended()
        number = next(self._numbers)
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        self.send(order.model_copy(update={"number": number}))
        try:
            answered = await asyncio.wait_for(reply, self._limit_s)
        except TimeoutError:
            _LOG.warning("environments_blocked", pid=self._process.pid, instances=self.instances)
            await self.kill()
            detail = f"this or another instance blocked their process for {self._limit_s} s"
            raise EnvironmentFault("environment_timeout", detail) from None
        finally:
            self._waiting.pop(number, None)
        if answered.fault:
            raise EnvironmentFault(*answered.fault)
        return answered.step

    async def _read(self) -> None:
        """Hands out replies until the output ends; then nobody waits any more, and nothing is left of it."""
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                reply = Reply.model_validate_json(line)
                if (waiting := self._waiting.get(reply.number)) and not waiting.done():
                    waiting.set_result(reply)
        except ValueError as error:  # a line that is no reply, or is too long: a decode of outside bytes
            _LOG.error("environments_garbled", error=str(error)[:300])
        self.is_alive = False
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(self._ended())
        await asyncio.to_thread(self._kill)
        atexit.unregister(self._kill)

    @staticmethod
    def _ended() -> EnvironmentFault:
        return EnvironmentFault("environment_error", "the process of this and other instances has ended")

    async def kill(self) -> None:
        """Ends it and all below it."""
        await asyncio.to_thread(self._kill)
        await self._reading
        await self._process.wait()


async def _wait_until_ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    try:
        ready = await asyncio.wait_for(process.stdout.readline(), _START_S)
    except TimeoutError:
        await asyncio.to_thread(kill_tree, process.pid)
        await process.wait()
        raise EnvironmentFault("environment_timeout", f"their process was not ready within {_START_S} s") from None
    if not ready:
        raise EnvironmentFault("environment_error", f"their process ended with {await process.wait()} at its start")


class Instance:
    """One environment of one sample."""

    def __init__(self, process: _Process, number: int) -> None:
        self._process, self._number = process, number

    async def reset(self, spec: EnvironmentSpec) -> None:
        """Begins.

        Raises:
            EnvironmentFault: see :meth:`step`.
        """
        await self._process.ask(Order(number=0, instance=self._number, verb="reset", spec=spec))

    async def step(self, answer: Answer) -> Step:
        """What the environment says to an answer.

        Raises:
            EnvironmentFault: ``environment_error`` or ``environment_timeout``.
        """
        step = await self._process.ask(Order(number=0, instance=self._number, verb="step", answer=answer))
        if step is None:
            raise EnvironmentFault("environment_error", "its process replied without a step")
        return step

    def close(self) -> None:
        """Lets go of it, without waiting."""
        self._process.send(Order(number=-1, instance=self._number, verb="close"))


class EnvironmentProcesses:
    """All environments of one pool. Lives in one event loop; starts processes when they are needed."""

    def __init__(self, config: EnvironmentsConfig) -> None:
        self._config = config
        self._processes: dict[tuple[str, int], _Process] = {}
        self._starting = asyncio.Lock()
        self._numbers = itertools.count()

    @contextlib.asynccontextmanager
    async def opened(self, spec: EnvironmentSpec) -> AsyncIterator[Instance]:
        """A new environment that has begun.

        Raises:
            EnvironmentFault: it could not begin.
        """
        process = await self._least_busy(spec.name)
        instance = Instance(process, next(self._numbers))
        process.instances += 1
        try:
            await instance.reset(spec)
            yield instance
        finally:
            process.instances -= 1
            instance.close()

    async def _least_busy(self, name: str) -> _Process:
        async with self._starting:
            place = min(((name, number) for number in range(self._config.processes)), key=self._load)
            process = self._processes.get(place)
            if process is None or not process.is_alive:
                process = self._processes[place] = await _Process.start(self._config)
            return process

    def _load(self, place: tuple[str, int]) -> int:
        process = self._processes.get(place)
        return process.instances if process and process.is_alive else 0

    async def close(self) -> None:
        """Ends the processes."""
        for process in self._processes.values():
            if process.is_alive:
                await process.kill()
