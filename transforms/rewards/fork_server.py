"""The fork server that reward processes come from: it ends with its pipeline, and so does all below it.

    pipeline ══ends, however──► fork server ──kills──► reward processes, and whatever they started

Multiprocessing's own fork server waits for the last of its processes to let go of a pipe, and a reward that hangs never
does: nobody is left who would kill it for its time. So the kernel tells the fork server (``PR_SET_PDEATHSIG``). That
signal comes when the *thread* that started the fork server ends, wherefore one thread starts it and never ends.

This module is imported in both processes: in a fork server, as the first of what that preloads, it asks for the signal.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from multiprocessing import forkserver, resource_tracker
from queue import SimpleQueue
from typing import Any, Final

import psutil

from transforms.rewards.killing import kill_tree

_PR_SET_PDEATHSIG: Final = 1
_PIPELINE_ENDED: Final = signal.SIGUSR1
_MODULE: Final = "multiprocessing.forkserver"
"""Named on a fork server's command line."""
_LOOK_S: Final = 0.05
_TRACKER_S: Final = 1.0
"""How long multiprocessing's tracker of resources is waited for: processes of another kind may still hold on to it."""


class _Keeper:
    """The thread that starts this process's fork server, and starts it again if somebody killed it."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[Future[None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._ending = False
        threading.Thread(target=self._keep, name="fork-server", daemon=True).start()
        atexit.register(self.end)  # the first of this module's, so the last: reward processes have ended

    def _keep(self) -> None:
        while True:
            asked = self._asked.get()
            try:
                asked.set_result(forkserver.ensure_running())
            except Exception as error:  # noqa: BLE001 - whoever asked gets it, and this thread never ends
                asked.set_exception(error)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While it is open, a process can be forked."""
        with self._lock:
            if self._ending:
                raise ProcessLookupError("this process ends")
            asked: Future[None] = Future()
            self._asked.put(asked)
            asked.result()
            yield

    def end(self) -> None:
        """Leaves nothing of it; nobody waits for what is being forked now."""
        self._ending = True
        _kill_servers()
        while not self._lock.acquire(timeout=_LOOK_S):
            _kill_servers()
        _kill_servers()
        with contextlib.suppress(ChildProcessError):  # somebody else has waited for it
            forkserver._forkserver._stop()  # type: ignore[attr-defined]
        tracker = threading.Thread(target=resource_tracker._resource_tracker._stop, daemon=True)  # type: ignore[attr-defined]
        tracker.start()
        tracker.join(_TRACKER_S)


_keepers: list[_Keeper] = []
_LOCK: Final = threading.Lock()


def running() -> contextlib.AbstractContextManager[None]:
    """While it is open, this process has a fork server, of which nothing stays when this process ends.

    Raises:
        OSError: none can be started, or this process is about to end.
    """
    with _LOCK:
        if not _keepers:
            _keepers.append(_Keeper())
    return _keepers[0].running()


def _kill_servers() -> None:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if _is_server(child.cmdline()):
                kill_tree(child.pid)


def _is_server(command: list[str]) -> bool:
    return any(_MODULE in word for word in command)


def _end_with_pipeline() -> None:
    """In the fork server."""
    signal.signal(_PIPELINE_ENDED, _end_all)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _PIPELINE_ENDED)


def _end_all(*_: Any) -> None:
    for child in psutil.Process().children():
        kill_tree(child.pid)
    os._exit(0)


if sys.platform == "linux" and _is_server(sys.orig_argv):
    _end_with_pipeline()
