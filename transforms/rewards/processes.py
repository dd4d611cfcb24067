"""Killable processes that compute rewards.

    Score ──task──► pebble pool ──► process (own session, address-space limit) ──► reward function

A process that exceeds its time is killed from outside with everything it forked: rewards run
arithmetic, parsers and other people's code that may ignore signals, fork, eat memory or never return.
A new process is forked from a server that has imported the rewards already, so the next reward does
not wait.
"""

import contextlib
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, Final

import pebble
import structlog

from schemas.config import RewardsConfig
from transforms.rewards import registry

_LOG = structlog.get_logger(__name__)
_PR_SET_PDEATHSIG: Final = 1
_PRELOAD: Final = ("__main__", "transforms.rewards.processes", "transforms.rewards.scoring", "math_verify")


class _SessionProcess(ForkServerProcess):
    """A process whose end is also that of everything it forked."""

    def terminate(self) -> None:
        """Kills the whole session at once: SIGTERM can be ignored, and a loop in C never sees it."""
        if self.pid is not None:
            kill_session(self.pid)
        self.kill()


class _SessionContext(ForkServerContext):
    Process = _SessionProcess


def kill_session(pid: int) -> None:
    """Kills all processes of the session that ``pid`` leads; nothing if there are none."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def prepare_process(memory_bytes: int, modules: tuple[str, ...]) -> None:
    """Runs first in every process: own session, limits, rewards imported."""
    os.setsid()
    if sys.platform == "linux":  # the fork server ends with the pipeline, and this process with the fork server
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    registry.load(modules)


class RewardProcesses:
    """A pool of reward processes; a broken pool is replaced by a new one."""

    def __init__(self, config: RewardsConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._pool = self._start()

    def _start(self) -> pebble.ProcessPool:
        multiprocessing.get_context("forkserver").set_forkserver_preload([*_PRELOAD, *self._config.modules])
        return pebble.ProcessPool(
            max_workers=self._config.processes,
            initializer=prepare_process,
            initargs=(self._config.memory_bytes, self._config.modules),
            context=_SessionContext(),
        )

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Runs ``function(*arguments)`` within ``timeout_s``.

        The future raises ``TimeoutError`` if its process was killed for its time, and another
        exception if the process died or the function raised.
        """
        with self._lock:
            try:
                return self._schedule(function, arguments)
            except (BrokenProcessPool, RuntimeError) as error:
                _LOG.error("reward_processes_broken", error=repr(error))
                self._pool = self._start()
                return self._schedule(function, arguments)

    def _schedule(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> "Future[Any]":
        future: Future[Any] = self._pool.schedule(function, args=arguments, timeout=self._config.timeout_s)
        return future

    def stop(self) -> None:
        """Kills the processes."""
        self._pool.stop()
        self._pool.join()


_PROCESSES: dict[str, RewardProcesses] = {}
_LOCK = threading.Lock()


def reward_processes(config: RewardsConfig) -> RewardProcesses:
    """The processes of this configuration; one set a pipeline process, started at the first call."""
    key = config.model_dump_json()
    with _LOCK:
        if key not in _PROCESSES:
            _PROCESSES[key] = RewardProcesses(config)
        return _PROCESSES[key]
