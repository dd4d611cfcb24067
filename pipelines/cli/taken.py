"""What is to happen when the name of a run to start is taken: go on with that run, start another, or stop.

--resume, --if-exists ──► said ─┐
a terminal ──► asked ───────────┴─► Start: name and whether it goes on
"""

import sys
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, get_args

from pipelines.runs import free_name, name_taken, run_exists

IfExists = Literal["resume", "new", "stop"]
_LETTERS: Final[dict[str, IfExists]] = {choice[0]: choice for choice in get_args(IfExists)}


class Start(NamedTuple):
    """Under which name a run starts."""

    name: str
    resumes: bool
    """Whether it goes on with the run of that name."""


def choose_start(name: str, if_exists: IfExists | None, ask: Callable[[str], IfExists] | None = None) -> Start:
    """Under which name to start.

    Args:
        name: that was given.
        if_exists: what was said; null where nothing was.
        ask: puts the question to a person; null to ask on the terminal, if there is one.

    Raises:
        RunError: the run exists, and nobody said to go on with it or to take another name.
    """
    if not run_exists(name):
        return Start(name, False)
    choice = if_exists or (ask(name) if ask else _ask(name))
    if choice == "resume":
        return Start(name, True)
    if choice == "new":
        return Start(free_name(name), False)
    raise name_taken(name)


def _ask(name: str) -> IfExists:
    """Asks a person, until there is an answer. Nobody to ask, or the end of the input, is to stop."""
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "stop"
    question = f"run {name!r} exists already: [r]esume it, start a [n]ew one as {free_name(name)!r}, or [s]top? "
    while True:
        sys.stderr.write(question)
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return "stop"
        if choice := _LETTERS.get(line.strip().lower()[:1]):
            return choice
