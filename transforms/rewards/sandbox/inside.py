"""The life of a sandbox, from an interpreter that can do everything to a keeper whose children can do nothing.

    start ──► namespaces ──► fork ──► new root ──► keeper: a job? ──► fork: judge ──► fork: answer
                                                      ▲                  │ its end, or its time is over
                                                      └── kill all ◄─────┘

The keeper reads no job and no answer, so what it forks for one knows nothing of the one before, nor the answer of its
own tests. It ends, and with it all else in its namespace, when the other side closes the control socket.
"""

import importlib
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import Final, NoReturn

from transforms.rewards.sandbox import answer, judge, limits, root

READY, MAPPED, DONE = b"r", b"m", b"."
"""What is said over the control socket."""
FAILED, BROKEN = b"!", b"?"
"""Instead of that, or of a test's byte: the sandbox, or the prompt's code, is at fault; what follows says how."""
_PRELOADED: Final = (
    *("bz2", "decimal", "hashlib", "lzma", "pyexpat", "uuid", "zlib"),
    *("bisect", "cmath", "collections", "copy", "datetime", "fractions", "functools", "heapq", "itertools", "math"),
    *("operator", "random", "re", "statistics", "string", "typing"),
)
"""Modules that need libraries of the system, which the new root lacks, and those that most answers import."""


def main(control: socket.socket, *, isolated: bool) -> NoReturn:
    """Never returns.

    Args:
        control: jobs come over it.
        isolated: without namespaces if not, and with limits alone.
    """
    os.environ.clear()
    keep_open(control.fileno())
    try:
        _preload()
        if isolated:
            _isolate(control)
        limits.guard()
    except OSError as error:
        control.sendall(FAILED + str(error.strerror or error).encode())
        os._exit(1)
    control.sendall(READY)
    _serve(control, isolated)


def _preload() -> None:
    limits.call_filter()
    for name in _PRELOADED:
        with suppress(ImportError):  # a Python may be built without it
            importlib.import_module(name)


def keep_open(*files: int) -> None:
    """Closes all files but these and the three standard ones, which lead nowhere."""
    below = 3
    for file in sorted(files):
        os.closerange(below, file)
        below = file + 1
    os.closerange(below, 1 << 16)


def _isolate(control: socket.socket) -> None:
    """Goes on as process 1 of new namespaces with a new root; the one that was here waits for it to end."""
    paths = root.shown()
    root.forget_keys()
    root.unshare(root.NEWUSER | root.NEWNS | root.NEWPID | root.NEWNET | root.NEWIPC | root.NEWUTS)
    control.sendall(MAPPED)
    if control.recv(1) != MAPPED:
        os._exit(1)
    if child := os.fork():
        control.close()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    root.change(paths)


def _serve(control: socket.socket, isolated: bool) -> NoReturn:
    while True:
        seconds, files, _, _ = socket.recv_fds(control, 32, 1)
        if not seconds or not files:
            os._exit(0)
        (file,) = files
        child = os.fork()
        if not child:
            control.close()
            _work(socket.socket(fileno=file), float(seconds), isolated)
        os.close(file)
        _wait(child, control, float(seconds))
        _end_all(child, isolated)
        control.sendall(DONE)


def _wait(child: int, control: socket.socket, seconds: float) -> None:
    """Until the judge has ended, its time is over, or the other side is gone."""
    process = os.pidfd_open(child)
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.register(control, select.POLLIN)
    poll.poll(seconds * 1000)
    os.close(process)


def _end_all(child: int, isolated: bool) -> None:
    """Of what the keeper started nothing is left."""
    with suppress(ProcessLookupError):
        if isolated and os.getpid() == 1:
            os.kill(-1, signal.SIGKILL)
        else:
            os.killpg(child, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.wait()


def _work(job: socket.socket, seconds: float, isolated: bool) -> NoReturn:
    """The process of the judge, and, forked from it before it knows the job, that of the answer."""
    try:
        if isolated:
            os.setsid()  # a signal to one's process group does not stop at a namespace
            root.unshare(root.NEWPID | root.NEWNS | root.NEWIPC)
            root.give_scratch()
        else:
            os.setpgid(0, 0)
        mine, theirs = socket.socketpair()
        if not os.fork():
            _answer(theirs, seconds, isolated)
        theirs.close()
        _confine(seconds, isolated)
    except OSError as error:
        job.sendall(FAILED + str(error.strerror or error).encode())
        os._exit(1)
    try:
        judge.judge(job, mine)
    except BaseException as error:  # noqa: BLE001 - of the prompt's code, SystemExit too
        job.sendall(BROKEN + f"{type(error).__name__}: {error}".encode()[:200])
    finally:
        os._exit(0)


def _answer(channel: socket.socket, seconds: float, isolated: bool) -> NoReturn:
    try:
        keep_open(channel.fileno())
        _confine(seconds, isolated)
        if isolated:
            os.setsid()
            os.chdir("/tmp")  # noqa: S108 - its own
        answer.serve(channel)
    finally:
        os._exit(1)


def _confine(seconds: float, isolated: bool) -> None:
    if isolated:
        limits.confine(seconds)
    else:
        limits.restrict(seconds)


def begin() -> NoReturn:
    """What ``launch`` has the interpreter call: the control socket's file and the mode are its arguments."""
    sys.path.remove(sys.argv[1])
    main(socket.socket(fileno=int(sys.argv[2])), isolated=sys.argv[3] == "isolated")
