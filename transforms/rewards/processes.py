"""Killable processes that compute rewards.

    Score ──call──► queue ──► thread ══pipe══► process (own session, limits, no output) ──► reward function
                                │                 ▲ └── whatever the function started: ended with the call
                                └─ time is over ──┘ killed from outside, with all below it

Rewards run arithmetic, parsers and other people's code that may ignore signals, fork, print, eat memory
or never return. A process adopts the orphans of what it forks (it is a *child subreaper*), so that a
child in a session of its own is still found below it. A new process is forked from a server that has
imported the rewards already, so the next reward does not wait; from that server it also inherits none
of the pipeline's files and sockets. Every process has a pipe of its own, without a lock: whenever and
however it dies, nothing that another process needs goes with it.
"""

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, Final

import psutil
import structlog

from schemas.config import RewardsConfig
from schemas.errors import ProcessDied
from transforms.rewards import registry

_LOG = structlog.get_logger(__name__)
_Call = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_SEARCH_S: Final = 2.0
"""How long descendants are looked for: long enough to stop all of them, unless they fork faster than that."""
_WAIT_S: Final = 0.005
_LAST_WORDS_S: Final = 1.0
"""How long a process that closed its pipe may take to end."""
_PRELOAD: Final = ("__main__", "transforms.rewards.processes", "transforms.rewards.scoring", "math_verify")


def kill_session(pid: int) -> None:
    """Kills all processes of the session that ``pid`` leads; nothing if there are none."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def kill_tree(pid: int) -> None:
    """Kills a process, its session, and all below it, whatever session they are in."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        root.suspend()  # it can neither fork nor end, so its orphans stay below it
        _kill_below(root)
        root.kill()
    kill_session(pid)


def _kill_below(root: psutil.Process) -> None:
    """Stops descendants until no new one is found, for what is stopped does not fork; then kills them."""
    stopped: set[psutil.Process] = set()
    deadline = time.monotonic() + _SEARCH_S
    while (found := set(root.children(recursive=True)) - stopped) and time.monotonic() < deadline:
        for process in found:
            _signal(process, signal.SIGSTOP)
        stopped |= found
    for process in stopped:
        _signal(process, signal.SIGKILL)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process.send_signal(number)


def end_children() -> None:
    """Kills and reaps all that this process started and that it adopted."""
    while _has_children():
        _kill_below(psutil.Process())
        while _reap():
            pass
        time.sleep(_WAIT_S)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _reap() -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    return False


def run_contained(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a reward process; nothing that it started outlives the call."""
    mine = os.getpid()
    try:
        return function(*arguments)
    finally:
        if os.getpid() != mine:  # a fork of this process came back as well: it is nobody's reward process
            os._exit(1)
        end_children()


def prepare_process(memory_bytes: int, modules: tuple[str, ...]) -> None:
    """Runs first in every process: own session, limits, rewards imported, no output."""
    os.setsid()
    if sys.platform == "linux":  # the fork server ends with the pipeline, and this process with the fork server
        library = ctypes.CDLL(None)
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        library.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    registry.load(modules)
    _silence()


def _silence() -> None:
    """What rewards print goes nowhere: it would fill the pipeline's log, or block on it. Errors are results."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)


def _serve(pipe: Connection, memory_bytes: int, modules: tuple[str, ...]) -> None:
    """The life of a reward process: ready, then call after call until the pipeline closes the pipe."""
    prepare_process(memory_bytes, modules)
    pipe.send((None, None))
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = pipe.recv()
            pipe.send(_outcome(function, arguments))


def _outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    try:
        return run_contained(function, *arguments), None
    except Exception as error:  # noqa: BLE001 - the reward call is a seam: the caller gets it
        return None, error


class _RewardProcess:
    """One process and the pipe to it."""

    def __init__(self, config: RewardsConfig) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*_PRELOAD, *config.modules])
        self._timeout_s = config.timeout_s
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, config.memory_bytes, config.modules)
        self._process = context.Process(target=_serve, args=arguments, name="rewards")
        self._process.start()
        atexit.register(self.kill)  # before multiprocessing waits for its children
        theirs.close()
        self._receive(None)

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Calls a function in the process.

        Raises:
            TimeoutError: it did not return in time; the process is gone.
            ProcessDied: the process ended.
        """
        with contextlib.suppress(BrokenPipeError):  # then it is dead, which is found next
            self._pipe.send((function, arguments))
        value, error = self._receive(self._timeout_s)
        if error is not None:
            raise error
        return value

    def _receive(self, timeout_s: float | None) -> Any:
        ready = wait([self._pipe, self._process.sentinel], timeout_s)
        if not ready:
            self.kill()
            raise TimeoutError(f"no reward within {timeout_s} s")
        try:
            if self._pipe in ready:
                return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(_LAST_WORDS_S)  # it is about to end, and its own exit code says more than ours
        self.kill()
        raise ProcessDied(f"the reward's process died with exit code {self._process.exitcode}")

    def is_alive(self) -> bool:
        """Whether it takes calls."""
        return not self._pipe.closed and self._process.is_alive()

    def kill(self) -> None:
        """Ends it and all below it. Its exit code is its own if it had ended before."""
        if self._process.pid is not None:
            kill_tree(self._process.pid)
        self._process.join()
        self._pipe.close()
        atexit.unregister(self.kill)


class RewardProcesses:
    """The reward processes of a pipeline, each with a thread that calls it; one that died is replaced."""

    def __init__(self, config: RewardsConfig) -> None:
        self._config = config
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"rewards-{index}", daemon=True)
            for index in range(config.processes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Calls ``function(*arguments)`` within ``timeout_s`` from its beginning.

        The future raises ``TimeoutError`` if its process was killed for its time, ``ProcessDied`` if
        the process ended by itself, and what the function raised.
        """
        future: Future[Any] = Future()
        self._calls.put((future, function, arguments))
        return future

    def _work(self) -> None:
        process: _RewardProcess | None = None
        while (call := self._calls.get()) is not None:
            future, function, arguments = call
            try:
                if process is None or not process.is_alive():
                    process = _RewardProcess(self._config)
                future.set_result(process.call(function, arguments))
            except Exception as error:  # noqa: BLE001 - the reward call is a seam: the caller gets it
                future.set_exception(error)
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """Ends the processes after the calls that were submitted."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()


_PROCESSES: dict[str, RewardProcesses] = {}
_LOCK = threading.Lock()


def reward_processes(config: RewardsConfig) -> RewardProcesses:
    """The processes of this configuration; one set a pipeline process, started at the first call."""
    key = config.model_dump_json()
    with _LOCK:
        if key not in _PROCESSES:
            _PROCESSES[key] = RewardProcesses(config)
        return _PROCESSES[key]
