"""What a sandbox promises, tried from within: each function is true if what it tries did not work.

Run as an answer once in every process that tests code, so that a system on which a limit does not hold is found out by
us.
"""

from inspect import getsource
from typing import Any, Final


def _refused(attempt: Any) -> bool:
    try:
        attempt()
    except (OSError, MemoryError, RuntimeError):
        return True
    return False


def processes() -> bool:
    """Neither a process nor a thread can be started."""
    import os
    import threading

    def fork() -> None:
        if not os.fork():
            os._exit(0)

    return _refused(fork) and _refused(threading.Thread(target=int).start)


def files() -> bool:
    """Of the system's files nothing is there, and nothing can be written but a little."""
    import os

    seen = set(os.listdir("/")) & {"etc", "home", "proc", "sys", "dev", "var", "run", "work", "boot", "mnt", "srv"}
    wrote = not _refused(lambda: os.close(os.open("/written", os.O_CREAT | os.O_WRONLY)))
    return not seen and not wrote and not os.listdir("/tmp")  # noqa: S108


def network() -> bool:
    """There is no way to another machine, nor to a service of this one."""
    import socket

    return _refused(lambda: socket.create_connection(("127.0.0.1", 9), 1)) and _refused(
        lambda: socket.create_connection(("192.0.2.1", 9), 1)
    )


def neighbours() -> bool:
    """No other process is to be seen."""
    import os
    import signal

    return os.getpid() == 1 and os.getppid() == 0 and _refused(lambda: os.kill(2, signal.SIGTERM))


def environment() -> bool:
    """There is none, and only standard files and the way to the tests are open."""
    import os

    opened = [number for number in range(64) if not _refused(lambda number=number: os.fstat(number))]  # type: ignore[misc]
    return not os.environ and len(opened) <= 4


def memory() -> bool:
    """There is an end to it."""
    return _refused(lambda: bytearray(1 << 30))


NAMES: Final = ("processes", "files", "network", "neighbours", "environment", "memory")
SOURCE: Final = "from typing import Any\n" + "\n".join(
    getsource(part) for part in (_refused, processes, files, network, neighbours, environment, memory)
)
