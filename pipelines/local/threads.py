"""How the processes of the local stack share the cores of one machine."""

import os
from typing import Final

_ONE: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_WAIT_ASLEEP: Final = {
    "OMP_WAIT_POLICY": "PASSIVE",  # a thread that spins while it waits takes a core from another process
    "KMP_BLOCKTIME": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_FEW_CORES: Final = 4


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_environment(process: str, available: int) -> dict[str, str]:
    """Environment variables that decide how many threads a process computes with.

    vLLM binds a thread to every physical core by itself. On a few cores the learner takes all of them
    too: the two are seldom busy at once, and threads that wait sleep. On more cores it takes one half.
    Everything else computes little.

    Args:
        process: ``worker``, ``learner`` or any other.
        available: cores to share.
    """
    if process == "worker":
        return dict(_WAIT_ASLEEP)  # with OMP_NUM_THREADS vLLM's serial processes would take that many threads, too
    if process == "learner":
        threads = available if available <= _FEW_CORES else available // 2
        return {**_WAIT_ASLEEP, "OMP_NUM_THREADS": str(threads)}
    return dict(_ONE)
