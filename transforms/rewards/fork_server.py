"""The fork server that reward processes come from: it ends with its pipeline, and so does all below it.

    pipeline ══ends, however──► fork server ──kills──► reward processes, and whatever they started

Multiprocessing's own fork server waits for the last of its processes to let go of a pipe, and a reward that hangs never
does: nobody is left who would kill it for its time. So the kernel tells the fork server (``PR_SET_PDEATHSIG``). That
signal comes when the *thread* that started the fork server ends, wherefore one thread starts it and never ends. It also
starts the processes: that starts a fork server too, if the last one has just died.

This module is imported in both processes: in a fork server it asks for the signal. Before it come the start of Python
and, of some versions, the pipeline's ``__main__``, which may take seconds; the fork server of a pipeline that has ended
meanwhile has another parent by then, and ends.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, Final

import psutil

from transforms.rewards.killing import kill_tree

_PR_SET_PDEATHSIG: Final = 1
_PIPELINE_ENDED: Final = signal.SIGUSR1
_MODULE: Final = "multiprocessing.forkserver"
"""Named on a fork server's command line."""
_PIPELINE_VARIABLE: Final = "ASYNCFLOW_PIPELINE_PID"
"""Names the pipeline's process to its fork server."""
_LOOK_S: Final = 0.05
_END_S: Final = 10.0
"""How long a process that is being forked is waited for at the end, although its fork server has been killed."""
_STOP_S: Final = 5.0
"""How long multiprocessing's tracker of resources is waited for: processes of another kind may still hold on to it."""


class _Keeper:
    """The thread that starts all that this process forks from its fork server, and so that server, again if it died."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[Callable[[], object], Future[None]]] = SimpleQueue()
        self._lock = threading.Lock()
        self._ending = False
        os.environ[_PIPELINE_VARIABLE] = str(os.getpid())
        threading.Thread(target=self._keep, name="fork-server", daemon=True).start()
        atexit.register(self.end)  # the first of this module's, so the last: reward processes have ended

    def _keep(self) -> None:
        while True:
            _do(*self._asked.get())

    def _ask(self, wanted: Callable[[], object]) -> Future[None]:
        done: Future[None] = Future()
        self._asked.put((wanted, done))
        return done

    def start(self, process: BaseProcess) -> None:
        """See below."""
        with self._lock:
            if self._ending:
                raise ProcessLookupError("this process ends")
            self._ask(process.start).result()

    def end(self) -> None:
        """Leaves nothing of it; what is being forked now is given up."""
        self._ending = True
        until_s = time.monotonic() + _END_S
        _kill_servers()
        while not self._lock.acquire(timeout=_LOOK_S):
            if time.monotonic() > until_s:  # what it starts yet ends with this process
                return
            _kill_servers()
        _kill_servers()
        # Not by another thread: Python 3.12 starts none at exit.
        for stop in (forkserver._forkserver._stop, resource_tracker._resource_tracker._stop):  # type: ignore[attr-defined]
            with contextlib.suppress(ChildProcessError, TimeoutError):  # somebody else has waited for it, or holds it
                self._ask(stop).result(_STOP_S)


def _do(wanted: Callable[[], object], done: Future[None]) -> None:
    try:
        wanted()
    except BaseException as error:  # noqa: BLE001 - it is the asker's; the fork server would end with this thread
        done.set_exception(error)
    else:
        done.set_result(None)


_keepers: list[_Keeper] = []
_LOCK: Final = threading.Lock()


def start(process: BaseProcess) -> None:
    """Starts a process of the context ``forkserver``, of which nothing stays when this process ends.

    Raises:
        OSError: it cannot be started, or this process is about to end.
        EOFError: the fork server died meanwhile.
        RuntimeError: this process is still importing its main module, or can start no thread.
    """
    with _LOCK:
        if not _keepers:
            _keepers.append(_Keeper())
    _keepers[0].start(process)


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
    if os.environ.get(_PIPELINE_VARIABLE) not in (None, str(os.getppid())):  # it had ended before: no signal comes
        os._exit(0)


def _end_all(*_: Any) -> None:
    for child in psutil.Process().children():
        kill_tree(child.pid)
    os._exit(0)


if sys.platform == "linux" and _is_server(sys.orig_argv) and forkserver.get_inherited_fds() is None:  # not below it
    _end_with_pipeline()
