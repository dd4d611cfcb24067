"""Killable processes that compute rewards.

    Score ──call──► queue ──► thread ══pipe══► process (own session, limits, no output) ──► reward function
                                │  a few calls    ▲ └── whatever the function started: ended with the call
                                └─ time is over ──┘ killed from outside, with all below it

Calls travel several at a time, because every message makes a thread of the pipeline wait for its
interpreter. Which of them runs, and since when, the process writes into memory that the pipeline
reads: so each call has its own time limit, and what happens to one of them happens to no other.

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
import pickle
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from glob import glob
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import psutil
import structlog

from schemas.config import RewardsConfig
from schemas.errors import ProcessDied
from transforms.modules import is_file
from transforms.rewards import fork_server, registry
from transforms.rewards.killing import kill_below, kill_tree
from transforms.rewards.sandbox import launch

_LOG = structlog.get_logger(__name__)
_BATCH_CALLS: Final = 64
"""Most calls in one message."""
_BATCH_S: Final = 0.02
"""After this time a process sends what it has; the calls that it did not begin go to whoever is free."""
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_WAIT_S: Final = 0.005
_LAST_WORDS_S: Final = 1.0
"""How long a process that closed its pipe may take to end."""
_PRELOAD: Final = (
    "transforms.rewards.fork_server",
    "__main__",
    "transforms.rewards.processes",
    "transforms.rewards.scoring",
    "transforms.rewards.judge",
    "transforms.rewards.reward_model",
    "math_verify",
    "sacrebleu.metrics.chrf",
)


def end_children() -> None:
    """Kills and reaps all that this process started and that it adopted, but for its sandbox, which waits for code."""
    spared = launch.kept()
    while _has_children(spared):
        kill_below(psutil.Process(), spared)
        while _reap():
            pass
        time.sleep(_WAIT_S)


def _has_children(spared: Collection[int]) -> bool:
    if spared:
        return bool(_children() - set(spared))
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children() -> set[int]:
    """Of this process, by the kernel's own list where it keeps one: psutil looks at every process of the machine."""
    found: set[int] = set()
    lists = glob("/proc/self/task/*/children")
    for file in lists:
        with contextlib.suppress(OSError):  # that thread has ended
            found.update(map(int, Path(file).read_text().split()))
    return found if lists else {child.pid for child in psutil.Process().children()}


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
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # the fork server's own
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


def _serve(pipe: Connection, running: "_Running", config: RewardsConfig) -> None:
    """The life of a reward process: ready, then calls after calls until the pipeline closes the pipe."""
    prepare_process(config.memory_bytes, config.modules)
    launch.choose(config.sandbox)
    pipe.send([])
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(_outcomes(pipe.recv(), running, pipe.fileno()))


def _outcomes(calls: Sequence[bytes], running: "_Running", way_back: int) -> list[bytes]:
    """The pickled outcomes of the calls, or of the first of them if those took long.

    Raises:
        OSError: a call closed the file ``way_back``; the process ends before that is blamed on the next.
    """
    outcomes: list[bytes] = []
    until_s = time.monotonic() + _BATCH_S
    for call in calls:
        running.begin(len(outcomes))
        outcomes.append(_outcome(call))
        os.fstat(way_back)
        if time.monotonic() > until_s:
            break
    return outcomes


def _outcome(call: bytes) -> bytes:
    try:
        function, arguments = pickle.loads(call)  # noqa: S301 - the pipeline's own, through a pipe of its own
        return pickle.dumps((run_contained(function, *arguments), None))
    except Exception as error:  # noqa: BLE001 - the reward call is a seam: the caller gets it
        return pickle.dumps((None, error))


class _Running:
    """Which call of a message runs and since when: written by the process, read by the pipeline.

    The time is written before the number and read after it, so nobody sees a call with the time of
    the one before.
    """

    def __init__(self, context: Any) -> None:
        self._shared = context.RawArray("d", 2)

    def begin(self, index: int) -> None:
        """Call ``index`` begins now."""
        self._shared[1] = time.monotonic()
        self._shared[0] = index

    def read(self) -> tuple[int, float]:
        """The call's index and when it began, of the monotonic clock."""
        index = int(self._shared[0])
        return index, self._shared[1]


class _CallFailed(Exception):
    """The process is gone, and call ``index`` of the message is why."""

    def __init__(self, index: int, reason: Exception) -> None:
        super().__init__(index, reason)
        self.index = index
        self.reason = reason


class _RewardProcess:
    """One process and the pipe to it."""

    def __init__(self, config: RewardsConfig) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*_PRELOAD, *(name for name in config.modules if not is_file(name))])
        self._timeout_s = config.timeout_s
        self._pipe, theirs = context.Pipe()
        self._running = _Running(context)
        self._process = context.Process(target=_serve, args=(theirs, self._running, config), name="rewards")
        fork_server.start(self._process)
        atexit.register(self.kill)  # before multiprocessing waits for its children
        theirs.close()
        self._receive(None)

    def call(self, calls: Sequence[bytes]) -> list[bytes]:
        """The outcomes of the first calls, one or more.

        Raises:
            _CallFailed: because of a TimeoutError, one of them did not return in time, or of a
                ProcessDied; the process is gone.
        """
        self._running.begin(0)
        with contextlib.suppress(BrokenPipeError):  # then it is dead, which is found next
            self._pipe.send(calls)
        return self._receive(self._timeout_s)

    def _receive(self, timeout_s: float | None) -> list[bytes]:
        if not self._wait(timeout_s):
            self._fail(TimeoutError(f"no reward within {timeout_s} s"))
        try:
            if self._pipe.poll():
                received: list[bytes] = self._pipe.recv()
                return received
        except (EOFError, OSError):
            self._process.join(_LAST_WORDS_S)  # it is about to end, and its own exit code says more than ours
        self.kill()
        return self._fail(ProcessDied(f"the reward's process died with exit code {self._process.exitcode}"))

    def _wait(self, timeout_s: float | None) -> bool:
        """Whether there is an answer, or an end, before the time of the call that runs is over."""
        while True:
            _, began_s = self._running.read()
            left_s = None if timeout_s is None else began_s + timeout_s - time.monotonic()
            if wait([self._pipe, self._process.sentinel], left_s and max(0.0, left_s)):
                return True
            if left_s is not None and left_s <= 0:
                return False

    def _fail(self, reason: Exception) -> NoReturn:
        index, _ = self._running.read()
        self.kill()
        raise _CallFailed(index, reason)

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


class _Call(NamedTuple):
    """A function and its arguments, pickled, and who waits for the result."""

    future: Future[Any]
    payload: bytes


class RewardProcesses:
    """The reward processes of a pipeline, each with a thread that calls it; one that died is replaced."""

    def __init__(self, config: RewardsConfig) -> None:
        self._config = config
        self._calls: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._stopping = False
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
        call = _Call(Future(), pickle.dumps((function, arguments)))
        call.future.set_running_or_notify_cancel()  # nobody takes it back: its thread would die of its outcome
        with self._changed:
            self._calls.append(call)
            self._changed.notify()
        return call.future

    def _work(self) -> None:
        process: _RewardProcess | None = None
        while calls := self._take():
            try:
                if process is None or not process.is_alive():
                    process = self._start()
                outcomes = process.call([call.payload for call in calls])
            except _CallFailed as failure:
                index = min(failure.index, len(calls) - 1)
                self._give_back(calls[:index] + calls[index + 1 :])
                calls[index].future.set_exception(failure.reason)
            else:
                self._give_back(calls[len(outcomes) :])
                _settle(calls, outcomes)
        if process is not None:
            process.kill()

    def _start(self) -> _RewardProcess:
        try:
            return _RewardProcess(self._config)
        except Exception as error:  # no process, thread or file to be had: those who wait hear of it
            raise _CallFailed(0, ProcessDied(f"no process for rewards can be started: {error}")) from error

    def _take(self) -> list[_Call]:
        """A thread's share of the calls that wait; none once all are done and the end was asked for."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._stopping)
            share = -(-len(self._calls) // len(self._threads))
            return [self._calls.popleft() for _ in range(min(share, _BATCH_CALLS))]

    def _give_back(self, calls: Sequence[_Call]) -> None:
        """To the front of the queue, in their order."""
        with self._changed:
            self._calls.extendleft(reversed(calls))
            self._changed.notify(len(calls))

    def stop(self) -> None:
        """Ends the processes after the calls that were submitted."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()


def _settle(calls: Sequence[_Call], outcomes: Sequence[bytes]) -> None:
    for call, outcome in zip(calls, outcomes, strict=False):
        value, error = pickle.loads(outcome)  # noqa: S301 - of our own process
        if error is None:
            call.future.set_result(value)
        else:
            call.future.set_exception(error)
