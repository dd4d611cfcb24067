"""A process that environments run in: orders come on its input, one JSON line each, replies go to its output.

    Order ──► new instance and reset │ step │ close ──► Reply: the Step, or what went wrong

Many instances live in one event loop. An order that awaits for too long is given up here; one that
blocks the loop is noticed from outside (:mod:`transforms.environments.processes`).
"""

import asyncio
import os
import sys
from typing import Any, BinaryIO, Final, Literal

from pydantic import BaseModel, ValidationError

from schemas.config import EnvironmentsConfig
from schemas.limits import MAX_PROMPT_BYTES
from schemas.prompts import EnvironmentSpec
from schemas.records import first_fault
from transforms.environments import registry
from transforms.environments.registry import Answer, Environment, Step
from transforms.rewards.processes import prepare_process
from transforms.rewards.scoring import describe

LONGEST_REPLY_BYTES: Final = MAX_PROMPT_BYTES
"""What an environment may say in one step: as much as a prompt."""
LONGEST_ORDER_BYTES: Final = 64 << 20


class Order(BaseModel):
    """What an instance is to do. Example: ``{"number": 7, "instance": 3, "verb": "step", "answer": {…}}``."""

    number: int
    """Of the order; its reply has the same."""
    instance: int
    verb: Literal["reset", "step", "close"]
    spec: EnvironmentSpec | None = None
    """For ``reset``."""
    answer: Answer | None = None
    """For ``step``."""


class Reply(BaseModel):
    """What came of an order. Example: ``{"number": 7, "step": {"done": true, "reward": 1.0}, "fault": null}``."""

    number: int
    step: Step | None = None
    """Null but for ``step``."""
    fault: tuple[str, str] | None = None
    """Reason and detail of an :class:`EnvironmentFault`."""


class Host:
    """The instances of this process."""

    def __init__(self, config: EnvironmentsConfig, output: BinaryIO) -> None:
        self._config, self._timeout_s, self._output = config, config.step_timeout_s, output
        self._instances: dict[int, Environment] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, orders: asyncio.StreamReader) -> None:
        """Says that it is ready and obeys until the input ends."""
        self._write(b"{}")
        while line := await orders.readline():
            task = asyncio.create_task(self._obey(Order.model_validate_json(line)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _obey(self, order: Order) -> None:
        self._write(await self._answer(order))

    def _write(self, line: bytes) -> None:
        self._output.write(line + b"\n")
        self._output.flush()

    async def _answer(self, order: Order) -> bytes:
        """The reply. The environment call is a seam: whatever it raises, SystemExit too, is a fault of its sample."""
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                return _encode(Reply(number=order.number, step=await self._do(order)))
        except ValidationError as error:
            fault = ("environment_error", first_fault(error))
        except BaseException as error:  # noqa: BLE001 - see above
            late = ("environment_timeout", f"{order.verb} took longer than {self._timeout_s} s")
            fault = late if limit.expired() else ("environment_error", describe(error))
        return _encode(Reply(number=order.number, fault=(fault[0], _printable(fault[1]))))

    async def _do(self, order: Order) -> Step | None:
        if order.spec is not None:
            await self._open(order.instance, order.spec)
        elif order.answer is not None:
            return _checked(await self._instances[order.instance].step(order.answer))
        else:
            await self._instances.pop(order.instance).close()
        return None

    async def _open(self, instance: int, spec: EnvironmentSpec) -> None:
        entry = registry.find(spec.name)
        self._instances[instance] = entry.thing()
        self._instances[instance].config = self._config
        await self._instances[instance].reset(registry.parse_arguments(entry, spec))


def _encode(reply: Reply) -> bytes:
    """As JSON.

    Raises:
        ValueError: it is too long, or holds what JSON cannot carry.
    """
    line = reply.model_dump_json().encode()
    if len(line) > LONGEST_REPLY_BYTES:
        raise ValueError(f"its messages take {len(line)} bytes, at most {LONGEST_REPLY_BYTES} are carried")
    return line


def _printable(detail: str) -> str:
    """Cut, and without what JSON cannot carry: an exception may quote anything."""
    return detail[:300].encode(errors="replace").decode()


def _checked(step: Any) -> Step:
    if not isinstance(step, Step):
        raise TypeError(f"step returned {type(step).__name__}, expected a Step")
    return Step.model_validate(step.model_dump())  # it may have been made unchecked


async def _serve(config: EnvironmentsConfig, given: BinaryIO, output: BinaryIO) -> None:
    orders = asyncio.StreamReader(limit=LONGEST_ORDER_BYTES)
    protocol = asyncio.StreamReaderProtocol(orders)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, given)
    await Host(config, output).serve(orders)


def main(given_config: str) -> None:
    """The life of the process; what environments print goes nowhere. Its argument is the configuration as JSON."""
    config = EnvironmentsConfig.model_validate_json(given_config)
    registry.load(config)
    given, output = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    prepare_process(config.memory_bytes, ())
    asyncio.run(_serve(config, given, output))
    os._exit(0)  # whatever threads its environments have left


if __name__ == "__main__":
    main(*sys.argv[1:])
