"""How the processes of the local stack share the cores of one machine."""

import os
from typing import Final

_ONE: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_FEW_CORES: Final = 4


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_environment(process: str, available: int) -> dict[str, str]:
    """Environment variables that decide how many threads a process computes with.

    On a few cores engine and learner take all of them each: they are seldom busy at once, and waiting
    threads sleep. On more cores each takes one half. Everything else computes little.

    Args:
        process: ``worker``, ``learner`` or any other.
        available: cores to share.
    """
    if process not in ("worker", "learner"):
        return dict(_ONE)
    threads = available if available <= _FEW_CORES else available // 2
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # a thread that spins while it waits takes a core from the other process
        "KMP_BLOCKTIME": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
