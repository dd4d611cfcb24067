"""What a step came to is written and announced by one thread, while the next step's gradient is computed.

    training thread   step k ──put──┬─► plan, forward, backward of k + 1 ──settle──► step k + 1 ──put──► …
    outbox's thread                 └─► weights k ► transaction k ──────────┘ └► old versions removed

The thread is the only one that writes to Kafka, one job after the other, so transactions are in order. There is at
most one job whose end nobody has taken note of: whoever takes a step settles before, so that no step is made before
the one before it is committed.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")


class Outbox:
    """One thread and what it was given. All methods are the training thread's."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="outbox")
        self._put: tuple[Future[Any], Callable[[Any], None]] | None = None
        self._chores: list[Future[None]] = []

    @property
    def is_busy(self) -> bool:
        """Whether there is a job whose end was not taken note of."""
        return self._put is not None

    def put(self, job: Callable[[], _T], note: Callable[[_T], None]) -> None:
        """Starts a job, after the one before is settled.

        Args:
            job: run by the thread.
            note: takes what it returns, on the training thread.
        """
        self.settle()
        self._put = (self._thread.submit(job), note)

    def settle(self, *, wait: bool = True) -> bool:
        """Takes note of a job that has ended; with ``wait`` it waits for that. False if it goes on.

        Raises:
            Exception: what the job raised.
        """
        if self._put is None:
            return True
        job, note = self._put
        if not wait and not job.done():
            return False
        self._put = None
        note(job.result())
        return True

    def run(self, job: Callable[[], _T]) -> _T:
        """Runs a job and returns what it does, after the one before is settled.

        Raises:
            Exception: what the job raised.
        """
        self.settle()
        return self._thread.submit(job).result()

    def chore(self, job: Callable[[], None]) -> None:
        """Has something done when the thread comes to it. Nobody waits for it; what it raises is raised here later.

        Raises:
            Exception: what an earlier one raised.
        """
        ended = [each for each in self._chores if each.done()]
        self._chores = [each for each in self._chores if not each.done()] + [self._thread.submit(job)]
        for each in ended:
            each.result()

    def close(self) -> None:
        """Waits for all that was put."""
        self._thread.shutdown()
