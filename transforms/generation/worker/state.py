"""What a worker serves right now, shared by the follower (writes), the gate and the status route (read).

One event loop owns it; nothing here is locked.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from schemas.weights import WeightVersion


class Metrics:
    """What a worker adds to vLLM's ``/metrics``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self.version = Gauge("asyncflow_worker_weight_version", "Version that is served.", registry=registry)
        self.updates = Counter(
            "asyncflow_worker_updates",
            "Versions loaded; in_flight says whether requests were running.",
            ["in_flight"],
            registry=registry,
        )
        self.refused = Counter(
            "asyncflow_worker_updates_refused",
            "Announcements not loaded, by reason.",
            ["reason"],
            registry=registry,
        )
        self.seconds = Histogram(
            "asyncflow_worker_update_seconds",
            "Time in which nothing was generated because of an update.",
            buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
            registry=registry,
        )
        self.version_wait = Counter(
            "asyncflow_worker_version_wait_seconds",
            "Time that requests waited for the weight version that they ask for, of all requests.",
            registry=registry,
        )


@dataclass
class WorkerState:
    """The applied version, the requests that run, and the counters."""

    metrics: Metrics
    max_model_len: int
    applied: WeightVersion | None = None
    """None until the first version is loaded and its probe agrees."""
    requests_running: int = 0
    updates: int = 0
    updates_in_flight: int = 0
    """Updates during which requests were running."""
    refused: int = 0
    stopping: bool = False
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def version(self) -> int:
        """The version that is served; 0 before the first."""
        return self.applied.version if self.applied else 0

    def begin_update(self) -> None:
        """From here until :meth:`apply` no answer leaves the worker: the new weights are not proven yet."""
        self._settled.clear()

    async def apply(self, announced: WeightVersion, *, in_flight: bool, pause_s: float) -> None:
        """The version is loaded and its probe agrees."""
        self.applied = announced
        self.updates += 1
        self.updates_in_flight += in_flight
        self.metrics.version.set(announced.version)
        self.metrics.updates.labels(in_flight=str(in_flight).lower()).inc()
        self.metrics.seconds.observe(pause_s)
        self._settled.set()
        async with self._changed:
            self._changed.notify_all()

    def refuse(self, reason: str) -> None:
        """An announcement was not loaded."""
        self.refused += 1
        self.metrics.refused.labels(reason=reason).inc()

    async def wait_for_version(self, version: int, timeout_s: float | None) -> bool:
        """Waits until a version at least this new is served.

        Returns:
            False if it was not within ``timeout_s`` (null: no limit), or the worker stops.
        """
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.stopping or self.version >= version)
        except TimeoutError:
            return False
        return self.version >= version

    async def settled(self) -> None:
        """Waits until no update is between its load and its proof."""
        await self._settled.wait()

    async def stop(self) -> None:
        """Sends every waiting request away."""
        self.stopping = True
        async with self._changed:
            self._changed.notify_all()

    def status(self) -> dict[str, Any]:
        """The body of ``GET /asyncflow/status``."""
        return {
            "version": self.version,
            "step": self.applied.step if self.applied else None,
            "generation": self.applied.generation if self.applied else None,
            "dtype": self.applied.dtype if self.applied else None,
            "base_model": self.applied.base_model if self.applied else None,
            "updates": self.updates,
            "updates_in_flight": self.updates_in_flight,
            "refused": self.refused,
            "requests_running": self.requests_running,
            "max_model_len": self.max_model_len,
        }
