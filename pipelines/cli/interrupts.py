"""SIGTERM, as systemd and Kubernetes send it, means the same as Ctrl-C; the exit code tells them apart."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.local.supervisor import SAME_S

_last: list[float] = []
"""When the last signal raised; empty if none has."""


class Interrupted(KeyboardInterrupt):
    """A signal that ends a verb.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def sigterm_is_ctrl_c() -> Iterator[None]:
    """While it is open, SIGINT, SIGTERM and SIGHUP raise :class:`Interrupted`; under ``nohup`` SIGHUP does nothing."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    _last.clear()
    before = [signal.signal(number, _interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """What a shell expects: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + _number(interrupt)


def describe(interrupt: KeyboardInterrupt) -> str:
    """One line: by what a verb was ended, and what was ended with it, as far as anyone noted that.

    Example: ``ended by Ctrl-C; ended learner, worker, kafka; the run goes on with …``
    """
    number = _number(interrupt)
    how = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    return "; ".join((f"ended by {how}", *getattr(interrupt, "__notes__", ())))


def _number(interrupt: KeyboardInterrupt) -> int:
    return interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT


def _interrupt(number: int, frame: Any) -> None:  # noqa: ARG001 - the form of signal handlers
    at = time.monotonic()
    if _last and at - _last[0] < SAME_S:
        return
    _last[:] = [at]
    raise Interrupted(number)
