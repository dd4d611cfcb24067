"""What faults act on: a running stack with everything around it that a drill needs.

Scene(config) as scene ──► stack + watch + feed + rogue + small disks + crash points
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

import psutil

from pipelines.drill.disks import SmallDisk
from pipelines.drill.feed import Feed
from pipelines.drill.rogue import Rogue
from pipelines.drill.watch import Watch
from pipelines.local.leftovers import family, identify
from pipelines.local.ports import free_ports
from pipelines.local.stack import LEARNER, Stack, asyncflow_command, environment_of
from pipelines.local.supervisor import tied_to_us
from pipelines.runs import CONFIG_NAME
from schemas.config import RunConfig, validate
from schemas.crash_points import VARIABLE
from schemas.errors import StateError
from schemas.manifests import MANIFEST_NAME, Manifest, sha256, verify

_FOREVER: Final = 1_000_000


@dataclass
class Blow:
    """One fault that struck, and what came of it."""

    fault: str
    began_at: datetime
    over_at: datetime | None = None
    """When nothing hindered the run any more; None while something does."""
    detected_at: datetime | None = None
    recovered_at: datetime | None = None
    """When the first group was trained that had been generated after ``over_at``."""
    witnesses: list[str] = field(default_factory=list)
    """What proves that it really happened."""
    missing: list[str] = field(default_factory=list)
    """What should have been seen and was not."""
    counts: dict[str, int] = field(default_factory=dict)
    """Faults that the audit found after it and not before."""
    tokens_again: int = 0
    dead_letters: int = 0
    not_possible: str = ""
    """Why it could not be tried here."""

    stall_s: float | None = None
    """The longest time without a step from ``began_at`` until the next fault; None if it did not recover."""

    def witness(self, happened: bool, text: str) -> None:
        """Notes that something was seen, or that it was not and should have been."""
        (self.witnesses if happened else self.missing).append(text)

    def detects(self) -> None:
        """Notes that some part of the system noticed, if it is the first to."""
        self.detected_at = self.detected_at or datetime.now(UTC)

    @property
    def detect_s(self) -> float | None:
        """Seconds until something noticed."""
        return (self.detected_at - self.began_at).total_seconds() if self.detected_at else None

    @property
    def recover_s(self) -> float | None:
        """Seconds from the end of the fault until the whole loop worked."""
        if self.recovered_at is None or self.over_at is None:
            return None
        return (self.recovered_at - self.over_at).total_seconds()


class Scene:
    """The stack of one drill and its surroundings; a context manager.

    Args:
        config: of the run.
        runs: where the run gets its directory.
        patience_s: how long a fault waits for what has to happen, such as a process to come up.
        make_stack: makes the stack, if it is to be another than that of this machine.
    """

    def __init__(
        self, config: RunConfig, runs: Path, patience_s: float, make_stack: Callable[..., Stack] = Stack
    ) -> None:
        directory = (runs / config.name).absolute()
        self.rogue = Rogue(free_ports(1)[0])
        self.points = directory / "crash-points"
        self.checkpoints = SmallDisk(directory / "checkpoints")
        self.weights = SmallDisk(directory / "weights")
        self.damaged: set[Path] = set()
        """Weight versions and checkpoints that the drill itself spoilt."""
        self.injected = 0
        """Groups of which the drill itself wrote a copy."""
        self._config, self._runs, self._patience_s, self._make_stack = config, runs, patience_s, make_stack
        self._exits = ExitStack()
        self._others: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        with self._exits:
            self.points.mkdir(parents=True)
            os.environ[VARIABLE] = str(self.points)
            self._exits.callback(os.environ.pop, VARIABLE)
            for disk in (self.checkpoints, self.weights):
                self._exits.enter_context(disk)
            stack = self._make_stack(self._config_with_rogue(), runs=self._runs, restarts=_FOREVER)
            self.stack = self._exits.enter_context(stack)
            self._exits.callback(self._end_others)
            self._exits.callback(self.rogue.switch_off)
            self._exits = self._exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _config_with_rogue(self) -> RunConfig:
        tree = self._config.model_dump(mode="json")
        tree["rollout"]["workers"] = [*tree["rollout"]["workers"], self.rogue.url]
        return validate(tree, "of the drill")

    @property
    def config(self) -> RunConfig:
        """What the processes read."""
        return self.stack.config

    def start(self, seed: int) -> None:
        """Starts everything; returns when the pipeline is on its way."""
        self.stack.start_serving()
        self.watch = Watch(self.config, self.stack.workers())
        self.feed = Feed(self.config, self.watch, seed)
        self.watch.start()
        self._exits.callback(self.watch.stop)
        self.feed.start()
        self._exits.callback(self.feed.stop)
        self.stack.start_rollout()

    def tick(self) -> None:
        """Looks after the stack; call it ten times a second."""
        self.stack.supervisor.tick()

    # ---- processes ----------------------------------------------------------------------------------

    def flags(self) -> list[str]:
        """The configuration of the run, for a process beside it."""
        return ["--config", str(self.stack.directory / CONFIG_NAME)]

    def pid(self, process: str) -> int | None:
        """The process id of a process of the stack, while it runs."""
        return self.stack.supervisor.pid(process)

    def when_up(self, process: str) -> Iterator[None]:
        """Waits until a process works; its id is :meth:`pid` then."""
        yield from self.until(lambda: self.pid(process) is not None and self.stack.supervisor.is_ready(process))

    def signal(self, process: str, number: signal.Signals) -> int:
        """Sends a signal to a process and all its children and returns the id; 0 if it is not there."""
        for member in self._members(process):
            with suppress(ProcessLookupError):
                os.kill(member, number)
        return self.pid(process) or 0

    def states(self, process: str) -> set[str]:
        """The states of a process and its children, as psutil names them."""
        found: set[str] = set()
        for member in self._members(process):
            with suppress(psutil.NoSuchProcess):
                found.add(psutil.Process(member).status())
        return found

    def _members(self, process: str) -> list[int]:
        pid = self.pid(process)
        leader = identify(process, pid) if pid else None
        return family(leader) if leader else []

    def start_another(self, verb: str, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
        """A process beside the stack; ends with the drill."""
        with (self.stack.directory / "logs" / f"beside-{verb}.log").open("ab") as log:
            process = subprocess.Popen(
                tied_to_us([*asyncflow_command(), verb, *arguments]), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment_of(LEARNER), start_new_session=True,
            )  # fmt: skip
        self._others.append(process)
        return process

    def _end_others(self) -> None:
        for process in self._others:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def log_size(self, process: str) -> int:
        """Where a process's log ends now."""
        return self.stack.supervisor.log(process).stat().st_size

    def said(self, process: str, text: str, since: int) -> bool:
        """Whether a process has written a text to its log since it had a size."""
        with self.stack.supervisor.log(process).open("rb") as log:
            log.seek(since)
            return text in log.read().decode(errors="replace")

    # ---- time ---------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], Any], timeout_s: float | None = None) -> Iterator[None]:
        """Yields until a condition holds or the time is over; whoever needs to know looks again."""
        end = datetime.now(UTC) + timedelta(seconds=self._patience_s if timeout_s is None else timeout_s)
        while not condition() and datetime.now(UTC) < end:
            yield

    def pause(self, seconds: float) -> Iterator[None]:
        """Yields for some time."""
        yield from self.until(lambda: False, seconds)


def torn(root: Path, damaged: set[Path]) -> list[str]:
    """Directories whose manifest says that they are whole, and that are not.

    Args:
        root: of weights or checkpoints.
        damaged: those that the drill itself spoilt.
    """
    from fsspec.implementations.local import LocalFileSystem

    found = []
    for manifest in root.glob(f"*/{MANIFEST_NAME}"):
        directory = manifest.parent
        if directory in damaged:
            continue
        try:
            value = manifest.read_bytes()
            verify(LocalFileSystem(), str(directory), Manifest.decode(value, sha256(value)))
        except (StateError, OSError) as error:
            if manifest.exists():  # else it was pruned meanwhile
                found.append(f"{directory}: {error}")
    return found
