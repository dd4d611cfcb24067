"""What the operating system allows: limits, clocks, ports, and a sandbox for code."""

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipelines.doctor.finding import Finding, Subject
from pipelines.dry_run.facts import ports_of
from pipelines.local.ports import LOOPBACK, free_ports, is_free
from schemas.errors import ConfigError
from transforms.rewards.sandbox import launch

_FEW_FILES: Final = 1024
"""A broker holds three files a partition open, an engine its connections."""
_FEW_PROCESSES: Final = 2048
"""Linux counts threads: a stack of six processes on eight cores has some six hundred."""
_WATCHED_S: Final = 0.2
_STEP_S: Final = 0.05
"""A wall clock that is set while it is watched; slewing by NTP is a ten-thousandth of the time."""
_PORTS_OF_STACK: Final = 9
_CORE_PATTERN: Final = Path("/proc/sys/kernel/core_pattern")


def check_limits(_: Subject) -> Iterator[Finding]:
    """Open files, processes, and what a crash writes."""
    yield _limit("limit of open files", resource.RLIMIT_NOFILE, _FEW_FILES, "ulimit -n 65536")
    yield _limit("limit of processes", resource.RLIMIT_NPROC, _FEW_PROCESSES, "ulimit -u unlimited")
    soft = resource.getrlimit(resource.RLIMIT_CORE)[0]
    piped = _CORE_PATTERN.is_file() and _CORE_PATTERN.read_text().startswith("|")
    large = soft != 0 and not piped
    remedy = "a crash of an engine writes a file as large as its memory: ulimit -c 0" if large else ""
    where = ", which a program takes" if piped and soft != 0 else ""
    yield Finding("core files", "warning" if large else "ok", f"at most {_bytes(soft)}{where}", remedy)


def _limit(name: str, kind: int, few: int, remedy: str) -> Finding:
    soft, hard = resource.getrlimit(kind)
    low = soft != resource.RLIM_INFINITY and soft < few
    found = f"{_number(soft)}, may be raised to {_number(hard)}"
    return Finding(name, "warning" if low else "ok", found, remedy if low else "")


def _number(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def _bytes(limit: int) -> str:
    return f"{_number(limit)} bytes"


def check_clock(_: Subject) -> Iterator[Finding]:
    """Whether the wall clock goes as evenly as the monotonic one."""
    wall, steady = time.time(), time.monotonic()
    time.sleep(_WATCHED_S)
    gap = (time.time() - wall) - (time.monotonic() - steady)
    text = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}; {gap * 1000:+.1f} ms in {_WATCHED_S:g} s"
    jumps = abs(gap) > _STEP_S
    remedy = "it is being set in steps: let NTP slew it (chrony, systemd-timesyncd)" if jumps else ""
    yield Finding("clock", "warning" if jumps else "ok", text, remedy)


def check_ports(subject: Subject) -> Iterator[Finding]:
    """Whether the ports of the configuration are free, and enough others."""
    found = free_ports(_PORTS_OF_STACK)
    yield Finding("free ports", "ok", f"{len(found)} of {LOOPBACK} for a local stack, all below the ephemeral range")
    for key, port in ports_of(subject.settings).items():
        if port and not is_free(port):
            yield Finding(
                key, "warning", f"{port} is taken", f"the run itself may be up; else give --{key} another number"
            )


def check_sandbox(subject: Subject) -> Iterator[Finding]:
    """Namespaces, seccomp and limits, tried from within; only the reward ``code`` needs them."""
    mode = subject.settings.rewards.sandbox
    try:
        launch.check("isolated")
    except ConfigError as error:
        detail = str(error).partition(": ")[2]
        remedy = 'the reward code gives nothing here; see docs/troubleshooting.md, or rewards.sandbox = "rlimits"'
        yield Finding("sandbox", "problem" if mode == "required" else "warning", detail, remedy)
        return
    yield Finding("sandbox", "ok", "namespaces and seccomp keep code in; no network, files or processes reach out")
