"""Where a pool of workers listens."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.local.ports import LOOPBACK, is_free
from schemas.checks import Check


@dataclass(frozen=True, slots=True)
class PoolAddress:
    """Of ``asyncflow beam-worker``."""

    port: int = 50000
    """Port of the pool; 0 for a free one, which its first line tells."""
    host: str = LOOPBACK
    """Address to listen on. Whoever reaches it can run code here."""
    metrics_port: int = 0
    """Port of a worker's Prometheus endpoint, on the loopback interface; 0 for none."""


def examine(options: PoolAddress) -> Iterator[Check]:
    """What would be started, and which ports are taken."""
    yield Check("beam-worker", f"a pool of Beam's workers on {options.host}:{options.port or 'a free port'}", "ok", "")
    for name, port in (("--port", options.port), ("--metrics-port", options.metrics_port)):
        if port:
            remedy = "" if is_free(port) else "something else listens there: give another port, or end it"
            yield Check(name, f"{port} is {'taken' if remedy else 'free'}", "problem" if remedy else "ok", remedy)
