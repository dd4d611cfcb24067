"""vLLM's processes end when the server does, even if it was killed.

    server ──starts──► EngineCore ──starts──► Worker (holds the model, runs this)

vLLM ends a Worker whose EngineCore died, but an EngineCore whose server was killed by SIGKILL waits
for it for ever, with all its memory. So the Worker watches both, by process descriptors: unlike
numbers they are never used twice.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from typing import Final

SERVER_VARIABLE: Final = "ASYNCFLOW_SERVER_PID"
"""Names the server's process to those that it starts."""


def hold() -> None:
    """Called in a process that holds the model: from now on it does not outlive the server."""
    server, parent = int(os.environ[SERVER_VARIABLE]), os.getppid()
    descriptors = {process: os.pidfd_open(process) for process in {server, parent}}
    threading.Thread(target=_watch, args=(descriptors, server), name="lifeline", daemon=True).start()


def _watch(descriptors: dict[int, int], server: int) -> None:
    """Returns never."""
    select.select(list(descriptors.values()), [], [])
    for process, descriptor in descriptors.items():
        if process != server:
            _kill(descriptor)
    os._exit(1)


def _kill(descriptor: int) -> None:
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return
