"""A sandbox from outside: started, given jobs, ended. Runs in a reward process, or wherever isolation is to be checked.

The only things that reach a sandbox are a control socket and, with each job, a socket of its own; the only thing that
comes back is a byte a test, read when everything in the sandbox that could have written more is dead.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal, Self

from schemas.errors import ConfigError, RewardFault
from transforms.rewards.sandbox import probe
from transforms.rewards.sandbox.inside import BROKEN, DONE, FAILED, MAPPED, READY
from transforms.rewards.sandbox.judge import BEGUN
from transforms.rewards.sandbox.limits import NOBODY

Mode = Literal["isolated", "required", "rlimits"]
"""``required`` is ``isolated``, but found out at the start."""

_BEGIN: Final = "import sys; sys.path.append(sys.argv[1]); from transforms.rewards.sandbox.inside import begin; begin()"
_PROJECT: Final = str(Path(__file__).parents[3])
_START_S: Final = 30.0
_END_S: Final = 1.0
"""How long it may take to end by itself."""
_GRACE_S: Final = 5.0
"""How long the keeper may take to kill what ran out of its time."""


@dataclass(frozen=True, slots=True)
class Job:
    """Code and its tests. Example: ``Job(("def f(x): return x",), ("assert f(1) == 1",), names=("f",))``."""

    sources: tuple[str, ...]
    """What is loaded in the answer's process, in this order."""
    tests: tuple[str, ...]
    """Each passes if it comes to its end without an exception; they run in a process of their own."""
    names: tuple[str, ...]
    """What the tests take from the answer."""
    context: str = ""
    """What the tests can use besides."""
    setup: str = ""
    """Loaded after the sources, in the same process."""
    seconds: float = 3.0
    """For all of it."""


class Sandbox:
    """A running one. Raises ``RewardFault`` with reason ``sandbox_unavailable`` where it cannot be had."""

    def __init__(self, *, isolated: bool) -> None:
        self._isolated = isolated
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_START_S)
        with theirs:
            self._process = _start(theirs, isolated=isolated)
        atexit.register(self.close)
        try:
            self._greet()
        except (OSError, EOFError) as error:
            self.close()
            raise unavailable(str(error)) from error

    def _greet(self) -> None:
        said = self._hear()
        if said == MAPPED:
            _map_user(self._process.pid)
            self._control.sendall(MAPPED)
            said = self._hear()
        if said != READY:
            reason = self._control.recv(300).decode(errors="replace")
            raise EOFError(reason or f"its interpreter ended while it was set up, exit code {self._process.wait()}")

    def _hear(self) -> bytes:
        said = self._control.recv(1)
        if not said:
            raise EOFError(f"its interpreter ended, exit code {self._process.wait()}")
        return said

    def run(self, job: Job) -> list[bool]:
        """Which tests passed; those that were not reached in time did not.

        Raises:
            RewardFault: ``sandbox_unavailable``, the sandbox failed and not the code in it; or ``bad_tests``, the
                prompt's own code did.
        """
        mine, theirs = socket.socketpair()
        with mine:
            try:
                with theirs:
                    socket.send_fds(self._control, [str(job.seconds).encode()], [theirs.fileno()])
                self._give(mine, job)
                self._control.settimeout(job.seconds + _GRACE_S)
                if self._hear() != DONE:
                    raise EOFError("its keeper said something else than that it was done")
            except (OSError, EOFError) as error:
                self.close()
                raise unavailable(f"it broke off: {error}") from error
            said = b""
            with suppress(ConnectionResetError):  # it ended before it had read the job
                said = mine.recv(len(job.tests) + 300, socket.MSG_WAITALL)
        _check_begun(said, job.seconds)
        return [said[index : index + 1] == b"1" for index in range(1, len(job.tests) + 1)]

    @staticmethod
    def _give(channel: socket.socket, job: Job) -> None:
        channel.settimeout(job.seconds)
        with suppress(OSError):  # nobody reads any more: then what comes back says it
            channel.sendall(json.dumps(asdict(job)).encode())
            channel.shutdown(socket.SHUT_WR)

    @property
    def pid(self) -> int:
        """Of the interpreter, below which everything else runs."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether it takes jobs."""
        if self._control.fileno() < 0:
            return False
        self._control.setblocking(False)
        try:
            return bool(self._control.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Ends it and all in it."""
        self._control.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        self._process.kill()
        self._process.wait()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_begun(said: bytes, seconds: float) -> None:
    """Whether it came to the answer's turn; if not, nothing is known of the answer."""
    if said.startswith(FAILED):
        raise unavailable(said[1:].decode(errors="replace"))
    if said.startswith(BROKEN):
        raise RewardFault("bad_tests", f"the prompt's own code or tests: {said[1:].decode(errors='replace')}")
    if not said.startswith(BEGUN):
        raise RewardFault(
            "bad_tests",
            f"the prompt's own context did not come to its end within {seconds:g} s, or ended its process; mend it or "
            "raise args.seconds",
        )


def unavailable(detail: str) -> RewardFault:
    """The one fault of this module."""
    return RewardFault(
        "sandbox_unavailable",
        f"code cannot be tested in isolation here: {detail}; see sandbox_unavailable in docs/troubleshooting.md",
    )


def _start(control: socket.socket, *, isolated: bool) -> "subprocess.Popen[bytes]":
    """The interpreter, with an empty environment but for what makes sets of strings iterate alike each time."""
    mode = "isolated" if isolated else "rlimits"
    return subprocess.Popen(
        [sys.executable, "-s", "-S", "-P", "-B", "-c", _BEGIN, _PROJECT, str(control.fileno()), mode],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"PYTHONHASHSEED": "0"},
        pass_fds=(control.fileno(),),
        start_new_session=True,
    )


def _map_user(pid: int) -> None:
    """Users are called the same inside; root has nobody besides, who the code that is tested will be."""
    user, group = os.geteuid(), os.getegid()
    users, groups = ({user}, {group}) if user else ({0, NOBODY}, {0, NOBODY})
    if user:
        Path(f"/proc/{pid}/setgroups").write_text("deny")
    for name, known in (("uid_map", users), ("gid_map", groups)):
        Path(f"/proc/{pid}/{name}").write_text("".join(f"{number} {number} 1\n" for number in sorted(known)))


_chosen: Mode = "isolated"
_kept: list[Sandbox] = []


def choose(mode: Mode) -> None:
    """How this process isolates the code that it tests from now on."""
    global _chosen  # noqa: PLW0603 - a setting of the process, given once when it starts
    _chosen = mode


def run(job: Job) -> list[bool]:
    """Runs a job in this process's sandbox, which is started where there is none.

    Raises:
        RewardFault: as of :meth:`Sandbox.run`.
    """
    isolated = _chosen != "rlimits"
    if isolated:
        _prove()
    return _current(isolated=isolated).run(job)


def _current(*, isolated: bool) -> Sandbox:
    if not _kept or not _kept[0].is_alive():
        for ended in _kept:
            ended.close()
        _kept[:] = [Sandbox(isolated=isolated)]
    return _kept[0]


def kept() -> tuple[int, ...]:
    """The child process of this process that is its sandbox, which goes on for the next job; none if there is none."""
    return tuple(sandbox.pid for sandbox in _kept)


@cache
def _prove() -> None:
    """Once a process: from within, that a sandbox keeps what it promises."""
    broken = failures(_current(isolated=True))
    if broken:
        raise unavailable(f"the sandbox did not keep out {', '.join(broken)}")


def failures(sandbox: Sandbox) -> Sequence[str]:
    """What of the promises does not hold in a sandbox, by name."""
    tests = tuple(f"assert {name}() is True" for name in probe.NAMES)
    kept = sandbox.run(Job((probe.SOURCE,), tests, probe.NAMES, seconds=10.0))
    return [name for name, held in zip(probe.NAMES, kept, strict=True) if not held]


def check(mode: Mode) -> None:
    """Whether code can be tested here as it was asked for.

    Raises:
        ConfigError: it cannot.
    """
    if mode == "rlimits":
        return
    try:
        with Sandbox(isolated=True) as sandbox:
            broken = failures(sandbox)
    except RewardFault as fault:
        raise ConfigError(f"rewards.sandbox {mode!r}: {fault.detail}") from fault
    if broken:
        raise ConfigError(f"rewards.sandbox {mode!r}: the sandbox did not keep out {', '.join(broken)}")
