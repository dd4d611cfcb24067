"""What a sandbox promises, tried from within: each function is true if what it tries did not work.

Run as an answer once in every process that tests code, so that a system on which a limit does not hold is found out by
us. None of them does harm where it works.
"""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from inspect import getsource
from typing import Final


def _refused(attempt: Callable[[], object]) -> bool:
    with suppress(OSError, MemoryError, RuntimeError):
        attempt()
        return False
    return True


def processes() -> bool:
    """Neither a process nor a thread can be started."""

    def fork() -> None:
        if not os.fork():
            os._exit(0)

    return _refused(fork) and _refused(threading.Thread(target=int).start)


def files() -> bool:
    """Of the system's files none is there, and nothing can be written but the scratch directory, which is empty."""
    seen = {"etc", "home", "proc", "sys", "dev", "var", "run", "srv", "mnt", "boot"}.intersection(os.listdir("/"))
    writable = not _refused(lambda: os.close(os.open("/", os.O_TMPFILE | os.O_WRONLY)))
    return not seen and not writable and not os.listdir("/tmp")  # noqa: S108 - its own


def network() -> bool:
    """There is no address to send to, not even its own."""
    return _refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9)))


def neighbours() -> bool:
    """No other process is to be seen, nor signalled with its own group."""
    alone = os.getpid() == os.getpgrp() == os.getsid(0) == 1
    return alone and os.getppid() == 0 and _refused(lambda: os.kill(2, 0))


def environment() -> bool:
    """There is none, and of files nothing is open but those that lead nowhere and the way to the judge."""
    opened = [file for file in range(64) if not _refused(lambda file=file: os.fstat(file))]  # type: ignore[misc]
    return not os.environ and len(opened) <= 4


def memory() -> bool:
    """It ends."""
    return _refused(lambda: bytearray(1 << 30))


_ALL: Final = (processes, files, network, neighbours, environment, memory)
NAMES: Final = tuple(function.__name__ for function in _ALL)
SOURCE: Final = "\n".join((
    "import os, socket, threading",
    "from collections.abc import Callable",
    "from contextlib import suppress",
    *(getsource(function) for function in (_refused, *_ALL)),
))  # fmt: skip
