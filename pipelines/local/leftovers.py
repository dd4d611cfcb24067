"""Which processes a supervisor started, on disk, so that they can be ended when it no longer can.

    python -m pipelines.local.leftovers FILE     waits until its standard input ends, then ends them

Each process of the stack is the leader of a session of its own, so its whole family can be told by
the session. A process id alone says little, since Linux uses it again: the record holds the boot and
the clock tick at which the process started too.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_STATE, _SESSION, _STARTED = 0, 3, 19  # fields of /proc/PID/stat after the name, see proc(5)
_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Leader:
    """A process that a supervisor started.

    Attributes:
        name: what it is, such as ``worker``.
        pid: its process id, which is its session's id too.
        started: the clock tick since boot at which it started.
        boot: the boot of the machine.
    """

    name: str
    pid: int
    started: int
    boot: str


def identify(name: str, pid: int) -> Leader | None:
    """The identity of a process that runs now; None if it has gone."""
    fields = _stat(pid)
    return Leader(name, pid, int(fields[_STARTED]), _boot()) if fields else None


def save(file: Path, leaders: list[Leader]) -> None:
    """Replaces the record."""
    beside = file.with_suffix(".tmp")
    beside.write_text(json.dumps([asdict(leader) for leader in leaders]))
    beside.replace(file)


def load(file: Path) -> list[Leader]:
    """What was recorded; nothing if there is no record, or one cut short."""
    with suppress(OSError, ValueError, TypeError):
        return [Leader(**entry) for entry in json.loads(file.read_text())]
    return []


def family(leader: Leader) -> list[int]:
    """Ids of the running processes of the leader's session, verified to be that session."""
    if leader.boot != _boot():
        return []
    now = _stat(leader.pid)
    if now and int(now[_STARTED]) != leader.started:
        return []  # the id was used again, so nothing of that session is left
    return [pid for pid, fields in _processes() if _belongs(fields, leader)]


def kill_family(leader: Leader, number: signal.Signals = signal.SIGKILL) -> list[int]:
    """Sends a signal to every process of the leader's session and returns their ids."""
    members = family(leader)
    for pid in members:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return members


def end_leftovers(file: Path) -> list[str]:
    """Kills what is left of the recorded processes, waits until it has gone and returns the names."""
    names = [leader.name for leader in load(file) if kill_family(leader)]
    deadline = time.monotonic() + _PATIENCE_S
    while any(family(leader) for leader in load(file)) and time.monotonic() < deadline:
        time.sleep(0.05)
    file.unlink(missing_ok=True)
    return names


def _belongs(fields: list[str], leader: Leader) -> bool:
    return int(fields[_SESSION]) == leader.pid and int(fields[_STARTED]) >= leader.started and fields[_STATE] != "Z"


def _processes() -> Iterator[tuple[int, list[str]]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            yield int(entry), fields


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # a name may hold blanks and parentheses


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stand_by(file: Path) -> None:
    """Outlives the supervisor: a closed pipe says that it has gone; then nothing it started may stay."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_leftovers(file)


if __name__ == "__main__":
    _stand_by(Path(sys.argv[1]))
