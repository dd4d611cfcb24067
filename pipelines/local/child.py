"""Becomes another program that dies with the process that started it.

    python -I -S child.py SUPERVISOR_PID PROGRAM ARGUMENT...

Linux sends the program SIGKILL when its parent ends, however that ends. This is a program of its own
and not a function to run between fork and exec, which is unsafe beside threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(supervisor: int, command: list[str]) -> int:
    """Replaces this process by the command; returns only if that fails."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it ended before the line above
            return 128 + signal.SIGKILL
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is the point
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
    return 127


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), sys.argv[2:]))
