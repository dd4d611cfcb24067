"""SIGTERM, as systemd and Kubernetes send it, means the same as Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def sigterm_is_ctrl_c() -> Iterator[None]:
    """While it is open, SIGTERM and SIGHUP raise ``KeyboardInterrupt``."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, _interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _interrupt(number: int, frame: Any) -> None:  # noqa: ARG001 - the form of signal handlers
    raise KeyboardInterrupt
