"""vLLM's multi-process executor, without its busy waiting: for CPUs that others need too.

vLLM's processes hand each other every step through shared memory, and whoever waits for it calls
``sched_yield`` in a loop. On two cores the EngineCore so burns more than the model computes (2,048
tokens of SmolLM2-135M: 7.3 s beside 5.0 s; with this 0.1 s), and takes it from the threads that it
waits for and from the learner.
"""

from __future__ import annotations

from typing import Final

from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

_LONGEST_SLEEP_MS: Final = 20
"""Between two looks at a queue whose notification did not come."""


class PatientExecutor(MultiprocExecutor):  # type: ignore[misc]
    """Runs in the EngineCore; named in ``--distributed-executor-backend``."""

    def _init_executor(self) -> None:
        wait_patiently()
        super()._init_executor()


def wait_patiently() -> None:
    """Readers of this process's message queues sleep until they are notified, from their first second on.

    vLLM spins for a second after each read; a reader that forgets its reads does not. It then depends
    on notifications that vLLM sends over a lossy socket (one that is lost cost 5 s), so it also looks
    for itself now and then.
    """
    wait = SpinCondition.wait

    def wait_a_little(condition: SpinCondition, timeout_ms: int | None = None) -> None:
        wait(condition, _LONGEST_SLEEP_MS if timeout_ms is None else min(timeout_ms, _LONGEST_SLEEP_MS))

    SpinCondition.record_read = lambda _: None
    SpinCondition.wait = wait_a_little
