"""The process in which a model's code runs: it is called with values and returns values. It never sees the tests.

Whatever the code does to this process, its builtins and its files, it can only return other values.
"""

import os
from socket import socket
from typing import Any, NoReturn

from transforms.rewards.sandbox import wire


class _Objects:
    """What the code defined, and what it returned that is not plain data: by name, or by number."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "answer"}
        self._kept: list[Any] = []

    def refer(self, value: Any) -> Any:
        self._kept.append(value)
        return ["object", len(self._kept) - 1]

    def find(self, reference: Any) -> Any:
        return self._kept[reference] if isinstance(reference, int) else self.names[reference]


def serve(channel: socket) -> NoReturn:
    """Loads the code that comes first, then answers calls until the judge is gone."""
    objects = _Objects()
    try:
        _reply(channel, lambda: _load(wire.receive(channel), objects), objects)
        while True:
            _answer(channel, wire.receive(channel), objects)
    finally:
        os._exit(0)


def _answer(channel: socket, call: Any, objects: _Objects) -> None:
    _reply(channel, lambda: _call(call, objects), objects)


def _reply(channel: socket, work: Any, objects: _Objects) -> None:
    try:
        reply = {"value": wire.encode(work(), objects.refer)}
    except BaseException as error:  # noqa: BLE001 - whatever strangers' code raises, SystemExit too
        reply = {"error": type(error).__name__}
    wire.send(channel, reply)


def _load(job: Any, objects: _Objects) -> None:
    for code in (*job["sources"], job["setup"]):
        exec(compile(code, "<answer>", "exec"), objects.names)  # noqa: S102 - that is what this process is for


def _call(call: Any, objects: _Objects) -> Any:
    function = objects.find(call["function"])
    arguments = [wire.decode(value, objects.find) for value in call["arguments"]]
    named = {name: wire.decode(value, objects.find) for name, value in call["named"].items()}
    return function(*arguments, **named)
