"""Ends processes with all that is below them, whatever session that is in and whatever it ignores."""

import contextlib
import os
import signal
import time
from collections.abc import Collection
from typing import Final

import psutil

_SEARCH_S: Final = 2.0
"""How long descendants are looked for: long enough to stop all of them, unless they fork faster than that."""


def kill_session(pid: int) -> None:
    """Kills all processes of the session that ``pid`` leads; nothing if there are none."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def kill_tree(pid: int) -> None:
    """Kills a process, its session, and all below it, whatever session they are in."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        root.suspend()  # it can neither fork nor end, so its orphans stay below it
        kill_below(root)
        root.kill()
    kill_session(pid)


def kill_below(root: psutil.Process, spared: Collection[int] = ()) -> None:
    """Stops descendants until no new one is found, for what is stopped does not fork; then kills them."""
    stopped: set[psutil.Process] = set()
    deadline = time.monotonic() + _SEARCH_S
    while (found := _below(root, spared) - stopped) and time.monotonic() < deadline:
        for process in found:
            _signal(process, signal.SIGSTOP)
        stopped |= found
    for process in stopped:
        _signal(process, signal.SIGKILL)


def _below(root: psutil.Process, spared: Collection[int]) -> set[psutil.Process]:
    """All descendants of a process but those of its spared children, and these."""
    if not spared:
        return set(root.children(recursive=True))
    found = {child for child in root.children() if child.pid not in spared}
    for child in tuple(found):
        with contextlib.suppress(psutil.NoSuchProcess):  # its children are ours now, and are found next time
            found.update(child.children(recursive=True))
    return found


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process.send_signal(number)
