"""The process in which the tests run: a byte for each, ``1`` if it came to its end without an exception.

Before them comes a byte that says that it is the answer's turn: what goes wrong before is not the answer's doing.

What the tests take from the answer, by name, are stand-ins: a call of one is made in the answer's process, and what it
returns is plain data, or a stand-in again that is equal to nothing else and neither true nor false.
"""

import json
from collections.abc import Callable
from socket import socket
from typing import Any, Final

from transforms.rewards.sandbox import wire

BEGUN: Final = b"+"
"""The first byte: job and context are read, and the answer's code is loaded next."""


class AnswerError(Exception):
    """The answer's code raised, or is gone."""


class StandIn:
    """Something in the answer's process.

    Args:
        call: makes a call there.
        reference: its name or number there.
    """

    __slots__ = ("_call", "_reference")

    def __init__(self, call: Callable[..., Any], reference: Any) -> None:
        self._call = call
        self._reference = reference

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Calls it there; what it raises there is an :class:`AnswerError` here."""
        return self._call(self._reference, arguments, named)

    def __bool__(self) -> bool:
        raise TypeError("an object of the answer's is neither true nor false")


class _Answer:
    """The answer's process, seen from here."""

    def __init__(self, channel: socket) -> None:
        self._channel = channel

    def ask(self, message: Any) -> Any:
        wire.send(self._channel, message)
        reply = wire.receive(self._channel)
        if "value" not in reply:
            raise AnswerError(reply)
        return wire.decode(reply["value"], self.stand_in)

    def stand_in(self, reference: Any) -> StandIn:
        return StandIn(self._call, reference)

    def _call(self, reference: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return self.ask({
            "function": reference,
            "arguments": [wire.encode(value, _refer) for value in arguments],
            "named": {name: wire.encode(value, _refer) for name, value in named.items()},
        })  # fmt: skip


def _refer(value: Any) -> Any:
    if isinstance(value, StandIn):
        return ["object", value._reference]
    raise TypeError(f"{type(value).__name__} cannot be given to an answer")


def judge(job: socket, channel: socket) -> None:
    """Reads the job, has its code loaded, and runs its tests one after the other.

    Raises:
        BaseException: of the prompt's own code, before the answer's was loaded.
    """
    with job.makefile("rb") as file:
        asked = json.load(file)
    answer = _Answer(channel)
    names: dict[str, Any] = {"__name__": "tests"}
    exec(compile(asked["context"], "<context>", "exec"), names)  # noqa: S102 - the prompt's own code, in the sandbox too
    names.update((name, answer.stand_in(name)) for name in asked["names"])
    tests = [compile(test, "<test>", "exec") for test in asked["tests"]]
    job.sendall(BEGUN)
    loaded = _succeeds(lambda: answer.ask({"sources": asked["sources"], "setup": asked["setup"]}))
    for test in tests:
        passed = loaded and _succeeds(lambda test=test: exec(test, dict(names)))  # type: ignore[misc]  # noqa: S102
        job.sendall(b"1" if passed else b"0")


def _succeeds(work: Callable[[], Any]) -> bool:
    try:
        work()
    except BaseException:  # noqa: BLE001 - a test that raises anything has failed
        return False
    return True
