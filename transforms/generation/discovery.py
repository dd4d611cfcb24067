"""Workers that announce themselves: the pool's ear on the registry.

    {run}.workers ──► Discovery (thread) ──► Workers.heard (event loop)

What a worker says is only that it is there; whether it is up, ``/health`` decides.
"""

import asyncio
import contextlib
from typing import Final

from schemas.config import RunConfig
from schemas.workers import WorkerEntry
from transforms.generation.follow import TopicFollower
from transforms.generation.workers import Workers

_LAST_S: Final = 30.0
"""A worker that was not heard of for this long is not looked for; each announces itself every few seconds."""


class Discovery:
    """Follows the registry while it is open, if the configuration wants it.

    Args:
        config: of the run.
        workers: who is told.
        loop: in which they live.
    """

    def __init__(self, config: RunConfig, workers: Workers, loop: asyncio.AbstractEventLoop) -> None:
        self._workers, self._loop = workers, loop
        self._follower: TopicFollower[WorkerEntry] | None = None
        if config.rollout.discover:
            topic = config.topics.workers
            self._follower = TopicFollower(config.kafka, topic, WorkerEntry, self._hear, last_s=_LAST_S)
            self._follower.start()

    def _hear(self, entry: WorkerEntry) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._workers.heard, entry)

    def stop(self) -> None:
        """No worker is heard any more."""
        if self._follower is not None:
            self._follower.stop()
