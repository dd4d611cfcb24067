"""Starts processes, keeps them running, ends them, and leaves none behind.

    start ─► ready? ─► tick, tick, … ─► stop
                        │ one died: restart it after a pause, or give up and name it
                        └ with exit code 2 before it ever worked it says what the user can mend: no restart

Each process leads a session of its own, so that Ctrl-C in the terminal reaches only the supervisor,
which then ends the processes in reverse order. If the supervisor itself is killed, Linux kills the
processes (see ``child``), and a stand-by process kills their families (see ``leftovers``).

There are no threads: ``tick`` does all the work, and whoever owns the supervisor calls it often, from
the thread that called ``start`` (Linux ties a child's life to the thread that started it).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from typing import Final, Self

import structlog

from pipelines.local import child
from pipelines.local.leftovers import Leader, end_leftovers, identify, kill_family, save
from pipelines.local.machine import memory
from pipelines.local.paths import make_directory
from schemas.errors import ProcessDied, UserError

TICK_S: Final = 0.1
"""A good pause between two ticks."""
EXIT_USER_ERROR: Final = 2
SAME_S: Final = 1.0
"""A signal that comes so soon after another is the same wish: a terminal and ``make`` may both pass it on."""

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_HEALTHY_AFTER_S: Final = 600.0
_QUICK_DEATH_S: Final = 5.0
"""Who dies before it works, or sooner than this afterwards, waits twice as long before its next start."""
_LINES_SHOWN: Final = 20

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Spec:
    """One process.

    Attributes:
        name: for the screen and the log's file name.
        command: program and arguments.
        environment: of the process, whole.
        ready: says whether it does its work by now; None if it does from the start.
        ready_timeout_s: how long that may take.
        restarts: how often it may die and be started again; deaths after ten healthy minutes do not count.
        grace_s: how long it may take to end after SIGTERM before it is killed.
        ends: exit code 0 means that its work is done; otherwise any exit is a death.
        bound: processes with the same non-empty word are useless without each other: if one dies, all are
            started again.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: Callable[[], bool] | None = None
    ready_timeout_s: float = 120.0
    restarts: int = 0
    grace_s: float = 20.0
    ends: bool = False
    bound: str = ""


@dataclass
class _Child:
    """What the supervisor knows of one process."""

    spec: Spec
    log: Path
    stage: int
    process: subprocess.Popen[bytes] | None = None
    leader: Leader | None = None
    started_at: float = 0.0
    ready_at: float | None = None
    """When it began to work since its last start; None before."""
    was_ready: bool = False
    is_done: bool = False
    deaths: int = 0
    pause_s: float = _FIRST_PAUSE_S
    start_again_at: float | None = None
    log_offset: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether it works now, or has done its work."""
        return self.is_done or (self.process is not None and self.ready_at is not None)


class Supervisor:
    """Owns the processes of one run.

    Args:
        logs: directory for ``<process>.log``.
        records: directory for the record of what runs. Only one supervisor may use it at a time; processes
            that an earlier one left are ended now.
    """

    def __init__(self, logs: Path, records: Path) -> None:
        self._logs = make_directory(logs)
        self._children: dict[str, _Child] = {}
        self._stages = 0
        for earlier in make_directory(records).glob("pids.*.json"):
            for name in end_leftovers(earlier):
                _log.warning("ended a process that an earlier supervisor left", process=name)
        # A file of its own: the stand-by of an earlier supervisor may still be at work on that one's.
        self._pids = records.absolute() / f"pids.{os.getpid()}-{time.time_ns()}.json"
        self._stand_by = _start_stand_by(self._pids)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *specs: Spec) -> None:
        """Starts processes as one stage, all at once; ``stop`` ends stages in reverse order."""
        self._stages += 1
        for spec in specs:
            self._children[spec.name] = _Child(spec, self._logs / f"{spec.name}.log", self._stages)
            self._launch(self._children[spec.name])

    def wait_ready(self, *names: str, on_tick: Callable[[], None] | None = None) -> None:
        """Returns once the named processes are ready.

        Raises:
            ProcessDied: one died too often, or was not ready in time.
            UserError: one ended with exit code 2 before it worked; its message.
        """
        while not all(self._children[name].is_ready for name in names):
            self.tick()
            if on_tick:
                on_tick()
            time.sleep(TICK_S)

    def tick(self) -> None:
        """Looks after every process once.

        Raises:
            ProcessDied: one died too often, or was not ready in time.
            UserError: one ended with exit code 2 before it worked, or too often; its message.
        """
        for each in list(self._children.values()):
            if each.process is not None:
                self._look_after(each)
            elif each.start_again_at is not None and time.monotonic() >= each.start_again_at:
                self._launch(each)

    def is_done(self, name: str) -> bool:
        """Whether a process whose work ends has ended with exit code 0."""
        return self._children[name].is_done

    def pid(self, name: str) -> int | None:
        """The process id, while it runs."""
        process = self._children[name].process
        return process.pid if process else None

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a process, if it runs."""
        _send(self._children[name], number)

    def is_ready(self, name: str) -> bool:
        """Whether a process does its work now."""
        return self._children[name].is_ready

    def deaths(self) -> dict[str, int]:
        """How often each process died, as far as it counts."""
        return {name: each.deaths for name, each in self._children.items()}

    def log(self, name: str) -> Path:
        """The file that holds what a process prints."""
        return self._logs / f"{name}.log"

    def stop(self) -> list[str]:
        """Ends everything, the last stage first. A second Ctrl-C meanwhile, after a second, kills at once.

        Returns:
            The names of the processes that ran, in this order.
        """
        again: list[int] = []
        ended: list[str] = []
        began = time.monotonic()

        def hurry(number: int) -> None:
            if time.monotonic() - began > SAME_S:
                again.append(number)

        with signals_go_to(hurry):
            for stage in range(self._stages, 0, -1):
                children = [each for each in self._children.values() if each.stage == stage]
                ended += [each.spec.name for each in children if each.process is not None]
                self._end(children, lambda: bool(again))
        self._children.clear()
        assert self._stand_by.stdin is not None
        self._stand_by.stdin.close()
        self._stand_by.wait()
        return ended

    def _look_after(self, each: _Child) -> None:
        assert each.process is not None
        code = each.process.poll()
        if code is not None:
            self._reap(each)
            self._on_exit(each, code)
        elif not each.is_ready:
            self._check_ready(each)
        elif time.monotonic() - each.started_at > _HEALTHY_AFTER_S:
            each.deaths = 0

    def _check_ready(self, each: _Child) -> None:
        waited_s = time.monotonic() - each.started_at
        if each.spec.ready is None:
            each.ready_at = each.started_at
        elif each.spec.ready():
            each.ready_at, each.was_ready = time.monotonic(), True
            _log.info("process is ready", process=each.spec.name, after_s=round(waited_s, 1))
        elif waited_s > each.spec.ready_timeout_s:
            raise ProcessDied(
                f"{each.spec.name} was not ready within {each.spec.ready_timeout_s:g} s; {_end_of_log(each)}"
            )

    def _on_exit(self, each: _Child, code: int) -> None:
        spec = each.spec
        if code == 0 and spec.ends:
            each.is_done = True
            _log.info("process is done", process=spec.name)
            return
        each.deaths += 1
        if code == EXIT_USER_ERROR and (not each.was_ready or each.deaths > spec.restarts):
            raise UserError(_said(each))
        if each.deaths > spec.restarts:
            raise ProcessDied(f"{spec.name} ended ({_describe(code)}){_likely_cause(code)}; {_end_of_log(each)}")
        if each.ready_at is not None and time.monotonic() - each.ready_at > _QUICK_DEATH_S:
            each.pause_s = _FIRST_PAUSE_S
        pause_s, each.pause_s = each.pause_s, min(2 * each.pause_s, _LONGEST_PAUSE_S)
        _log.warning(
            "process died, starting it again", process=spec.name, how=_describe(code), deaths=each.deaths,
            of=spec.restarts, in_s=pause_s, log=str(each.log),
        )  # fmt: skip
        bound = [other for other in self._children.values() if spec.bound and other.spec.bound == spec.bound]
        self._end(bound, hurry=lambda: True)  # what they did together is lost already
        for one in bound or [each]:
            one.start_again_at = time.monotonic() + pause_s

    def _launch(self, each: _Child) -> None:
        with signals_wait(), each.log.open("ab") as log:  # a process that nobody knows could not be ended
            each.log_offset = log.tell()
            each.process = subprocess.Popen(
                tied_to_us(each.spec.command), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=dict(each.spec.environment), start_new_session=True,
            )  # fmt: skip
        each.started_at, each.ready_at, each.start_again_at = time.monotonic(), None, None
        each.leader = identify(each.spec.name, each.process.pid)
        self._record()
        _log.info("process started", process=each.spec.name, pid=each.process.pid, log=str(each.log))

    def _reap(self, each: _Child) -> None:
        """After the leader's end: no member of its family stays."""
        if each.leader and (left := kill_family(each.leader)):
            _log.warning("killed what a process left behind", process=each.spec.name, pids=left)
        each.process = each.leader = None
        self._record()

    def _record(self) -> None:
        save(self._pids, [each.leader for each in self._children.values() if each.leader])

    def _end(self, children: list[_Child], hurry: Callable[[], bool]) -> None:
        """SIGTERM to each, then, when its grace is over or the user is in a hurry, SIGKILL to its family."""
        running = [each for each in children if each.process is not None]
        for each in running:
            _send(each, signal.SIGTERM)
        asked_at = time.monotonic()
        for each in running:
            assert each.process is not None
            while each.process.poll() is None:
                if hurry() or time.monotonic() - asked_at > each.spec.grace_s:
                    _log.warning("process does not end, killing it", process=each.spec.name, pid=each.process.pid)
                    _send(each, signal.SIGKILL)
                    each.process.wait()
                time.sleep(TICK_S / 2)
            _log.info("process ended", process=each.spec.name, how=_describe(each.process.returncode))
            self._reap(each)


def tied_to_us(command: Sequence[str]) -> list[str]:
    """What starts a command that dies with this process, however that ends (see ``child``)."""
    return [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), *command]


def _send(each: _Child, number: signal.Signals) -> None:
    if each.process is not None:
        each.process.send_signal(number)


def _start_stand_by(pids: Path) -> "subprocess.Popen[bytes]":
    """A process that ends what is recorded once this one has gone, in whatever way."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.local.leftovers", str(pids)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


@contextmanager
def signals_go_to(handle: Callable[[int], None]) -> Iterator[None]:
    """While it is open, Ctrl-C, SIGTERM and SIGHUP call ``handle`` instead of raising."""
    if current_thread() is not main_thread():
        yield
        return
    all_three = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    numbers = [each for each in all_three if signal.getsignal(each) is not signal.SIG_IGN]  # as nohup has it
    before = [signal.signal(number, lambda number, _: handle(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP that come while it is open do so when it closes."""
    held: list[int] = []
    with signals_go_to(held.append):
        yield
    for number in held[:1]:
        signal.raise_signal(number)


def _describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _likely_cause(code: int) -> str:
    """Of an end that was not asked for: a process that the system kills for want of memory cannot say so itself."""
    if code != -signal.SIGKILL:
        return ""
    found = memory()
    return (
        f", as the system ends what takes more memory than there is; {found.available_bytes / 2**30:.1f} of "
        f"{found.total_bytes / 2**30:.1f} GiB are free now. The same command with --dry-run reckons what is "
        "needed: take a smaller model or model.dtype, or a machine with more"
    )


def _since_start(each: _Child) -> list[str]:
    with each.log.open("rb") as log:
        log.seek(each.log_offset)
        return log.read().decode(errors="replace").splitlines()


def _end_of_log(each: _Child) -> str:
    lines = _since_start(each)[-_LINES_SHOWN:]
    return f"the last lines of {each.log}:\n" + "\n".join(f"  {line}" for line in lines or ["(nothing)"])


def _said(each: _Child) -> str:
    """The message with which a process of ours ended: what follows ``asyncflow …: `` in its log."""
    lines = _since_start(each)
    starts = [index for index, line in enumerate(lines) if line.startswith("asyncflow ")]
    return "\n".join(lines[starts[-1] :]) if starts else f"{each.spec.name} refused to start; {_end_of_log(each)}"
