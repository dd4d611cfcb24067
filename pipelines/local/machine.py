"""What this machine has: memory, GPUs, instruction sets. Asked of the system, without torch, in milliseconds."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil

_CPUINFO: Final = Path("/proc/cpuinfo")
_CGROUP_FILES: Final = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Limit and use of a container's memory, of version 2 and of version 1 of control groups; see cgroups(7)."""
_NVIDIA_TIMEOUT_S: Final = 4.0
_FAST_BFLOAT16: Final = ("avx512_bf16", "amx_bf16")
_KNOWN_SETS: Final = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    total_bytes: int
    free_bytes: int
    driver: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the machine, or of the container that this process is in, whichever is less."""

    total_bytes: int
    available_bytes: int


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that ``nvidia-smi`` lists; none where it is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_NVIDIA_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(_gpu(line) for line in done.stdout.splitlines() if line.count(",") == 3)


def _gpu(line: str) -> Gpu:
    name, total_mib, free_mib, driver = (part.strip() for part in line.split(","))
    return Gpu(name, int(total_mib) << 20, int(free_mib) << 20, driver)


def memory() -> Memory:
    """Memory that processes may still take."""
    found = psutil.virtual_memory()
    for limit_name, use_name in _CGROUP_FILES:
        limit = _cgroup(limit_name)
        if limit is not None and limit < found.total:
            return Memory(limit, max(0, min(found.available, limit - (_cgroup(use_name) or 0))))
    return Memory(found.total, found.available)


def _cgroup(name: str) -> int | None:
    """A number of the control group that a container is; null where there is none, or no limit."""
    try:
        text = (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def free_bytes(path: Path) -> int:
    """Free bytes where a directory is, or will be."""
    existing = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    return shutil.disk_usage(existing).free


def instruction_sets() -> tuple[str, ...]:
    """Those of the CPU that decide how fast it multiplies; none where the system does not say."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return ()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return tuple(each for each in _KNOWN_SETS if each in flags)


def expected_dtype() -> Literal["float32", "bfloat16"]:
    """What ``model.dtype = "auto"`` is likely to come to here; a run measures it, which takes torch and its seconds.

    CPUs without an instruction for it emulate bfloat16: see ``trainers/precision.py``.
    """
    if gpus() or set(_FAST_BFLOAT16).intersection(instruction_sets()):
        return "bfloat16"
    return "float32"
