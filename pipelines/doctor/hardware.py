"""Processors, GPUs, memory and disks."""

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipelines.doctor.finding import Finding, Subject, Verdict
from pipelines.local.machine import expected_dtype, free_bytes, gpus, instruction_sets, memory
from pipelines.local.paths import DEFAULT_RUNS, cache_place
from pipelines.local.stack import SPARE_BYTES
from pipelines.local.threads import cores
from pipelines.sizes import gib

_LITTLE_MEMORY: Final = 6 << 30
"""The demo's engine, learner and broker take 4.3 GiB by ``asyncflow demo --dry-run``, and activations besides."""
_NO_MEMORY: Final = 2 << 30
"""Less than the smallest engine, a broker and a few interpreters."""
_LITTLE_DISK: Final = 6 << 30
"""The demo's versions, checkpoints and log take 5 GiB by ``asyncflow demo --dry-run``."""
_LITTLE_SHARED: Final = 1 << 30
"""Containers get 64 MiB unless told otherwise; NCCL and vLLM's processes exchange tensors there."""
_SHARED: Final = Path("/dev/shm")  # noqa: S108 - of the system


def check_cpu(subject: Subject) -> Iterator[Finding]:
    """Cores, instruction sets, and the number format that these let expect."""
    given = subject.settings.model.dtype
    sets = ", ".join(instruction_sets()) or "no vector instructions known"
    chosen = f"model.dtype auto: {expected_dtype()} is expected" if given == "auto" else f"model.dtype {given}"
    few = cores() < 2
    remedy = "engine and learner share one core: everything takes twice as long" if few else ""
    yield Finding("cpu", "warning" if few else "ok", f"{platform.machine()}, {cores()} cores, {sets}; {chosen}", remedy)


def check_gpus(_: Subject) -> Iterator[Finding]:
    """Those that nvidia-smi lists."""
    found = gpus()
    if not found:
        yield Finding("gpu", "skipped", "none by nvidia-smi; everything is computed on the CPU")
    for number, gpu in enumerate(found):
        text = f"{gpu.name}, {gib(gpu.free_bytes)} of {gib(gpu.total_bytes)} free, driver {gpu.driver}"
        full = gpu.free_bytes < gpu.total_bytes // 2
        remedy = "something else uses it: lower worker.gpu_memory_utilization, or end that" if full else ""
        yield Finding(f"gpu {number}", "warning" if full else "ok", text, remedy)


def check_memory(_: Subject) -> Iterator[Finding]:
    """What is available now."""
    found = memory()
    text = f"{gib(found.available_bytes)} of {gib(found.total_bytes)} available"
    verdict = _grade(found.available_bytes, _LITTLE_MEMORY, _NO_MEMORY)
    remedy = "" if verdict == "ok" else "end other programs, or see with asyncflow up --dry-run what your model takes"
    yield Finding("memory", verdict, text, remedy)


def check_disks(subject: Subject) -> Iterator[Finding]:
    """Where runs, what is downloaded, and what is shared lie."""
    run = subject.directory or DEFAULT_RUNS
    yield _disk("disk of runs", run, _LITTLE_DISK, SPARE_BYTES, "make room, or work in another directory")
    yield _disk(
        "disk of the cache", cache_place(), 2 * SPARE_BYTES, SPARE_BYTES // 2, "make room, or set XDG_CACHE_HOME"
    )
    if _SHARED.is_dir():
        yield _disk(
            "shared memory", _SHARED, _LITTLE_SHARED, 1 << 20, "in Docker give --shm-size=8g; else mount it larger"
        )


def _disk(name: str, path: Path, little: int, none: int, remedy: str) -> Finding:
    free = free_bytes(path)
    verdict = _grade(free, little, none)
    return Finding(name, verdict, f"{gib(free)} free at {path}", "" if verdict == "ok" else remedy)


def _grade(available: int, little: int, none: int) -> Verdict:
    if available < none:
        return "problem"
    return "warning" if available < little else "ok"
