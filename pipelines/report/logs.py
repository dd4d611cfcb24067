"""What the processes of a run said in ``logs/<process>.log``: warnings and errors by kind, and their last words.

2026-01-31T12:00:00Z [warning  ] worker_down      reason="…" worker=…   ──► Said(process, level, event, …)
asyncflow learn: FencedError: …                                         ──► Said(process, "ended", …)
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_LINE: Final = re.compile(
    r"(?P<at>\S{19})Z \[(?P<level>warning|error|critical) *\] (?P<event>.+?)(?:  +(?P<rest>.*)|$)"
)
_ENDED: Final = re.compile(r"asyncflow (?P<event>[a-z-]+): (?!ended by )(?P<rest>.+)")
"""But for one that was asked to end."""
_KINDS_OF_A_PROCESS: Final = 50
_REST_CHARACTERS: Final = 300
_TELLING: Final = ("worker_down",)
"""Warnings that tell of a fault of something else."""


@dataclass(slots=True)
class Said:
    """One kind of message of one process."""

    process: str
    level: str
    """``warning``, ``error``, ``critical``, or ``ended`` for the message with which a command ended."""
    event: str
    rest: str
    """What the first of them added, cut."""
    first: datetime | None
    """Null for ``ended``: such a line has no time."""
    times: int = 1

    @property
    def tells_of_fault(self) -> bool:
        """Whether it belongs among the faults of a run; other warnings are part of its life."""
        return self.level != "warning" or self.event in _TELLING


def read_logs(directory: Path) -> list[Said]:
    """What the processes of a run said, by process in the order of first times; at most 50 kinds a process."""
    return [said for log in sorted(directory.glob("*.log")) for said in _read(log)]


def _read(log: Path) -> list[Said]:
    with log.open(errors="replace") as lines:
        return list(said_in(log.stem, lines))


def said_in(process: str, lines: Iterable[str]) -> Iterator[Said]:
    """The messages of one log."""
    found: dict[tuple[str, str], Said] = {}
    for line in lines:
        told = _parse(process, line)
        if told is None:
            continue
        key = (told.level, told.rest if told.level == "ended" else told.event)
        if key in found:
            found[key].times += 1
        elif len(found) < _KINDS_OF_A_PROCESS:
            found[key] = told
    yield from found.values()


def _parse(process: str, line: str) -> Said | None:
    if ended := _ENDED.match(line):
        return Said(process, "ended", ended["event"], ended["rest"][:_REST_CHARACTERS], None)
    told = _LINE.match(line.rstrip("\n"))
    if told is None:
        return None
    try:
        at = datetime.fromisoformat(told["at"]).replace(tzinfo=UTC)
    except ValueError:
        return None
    return Said(process, told["level"], told["event"].strip(), (told["rest"] or "")[:_REST_CHARACTERS], at)
