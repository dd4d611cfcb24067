"""What the coordinator serves to Prometheus; every figure is documented in ``docs/metrics.md``."""

from collections.abc import Iterable
from functools import partial
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from schemas.endpoint import serve_metrics
from schemas.federation import LeftOutReason, Merge

_SECONDS = (1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)


class Figures:
    """Of one coordinator, from its start.

    Args:
        port: to listen on; 0 for none.
        host: address of this machine.

    Raises:
        PortError: something else listens there, or the address is not this machine's.
    """

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        registry = CollectorRegistry()
        gauge, counter = partial(Gauge, registry=registry), partial(Counter, registry=registry)
        self._version = gauge("asyncflow_federation_version", "Newest global version.")
        self._sites = gauge("asyncflow_federation_sites", "With rounds, sites that were there for the newest.")
        self._asked = gauge("asyncflow_federation_sites_asked", "Sites that the newest round asks.")
        self._waiting = gauge("asyncflow_federation_updates_waiting", "Updates that the next merge has so far.")
        self._merged = counter("asyncflow_federation_updates_merged", "Updates merged.")
        self._left_out = counter("asyncflow_federation_updates_left_out", "Updates left out, by reason.", ["reason"])
        self._missed = counter("asyncflow_federation_rounds_missed", "Rounds without a quorum at their deadline.")
        self._bytes = counter("asyncflow_federation_update_bytes", "Bytes of the updates that merges had.")
        self._seconds = Histogram(
            "asyncflow_federation_merge_seconds", "From one merge to the next.", buckets=_SECONDS, registry=registry
        )
        self._epsilon = gauge(
            "asyncflow_federation_epsilon", "With noise, spent budget of the site that took part most."
        )
        for reason in get_args(LeftOutReason):  # else an alert would not see the first of them
            self._left_out.labels(reason)
        serve_metrics("", host, port, registry)

    def lead(self, version: int) -> None:
        """A coordinator goes on from a global version."""
        self._version.set(version)

    def hear(self, sites: int) -> None:
        """So many sites are there."""
        self._sites.set(sites)

    def ask(self, sites: int) -> None:
        """A round asks so many of them."""
        self._asked.set(sites)

    def gather(self, updates: int) -> None:
        """So many updates wait for the next merge."""
        self._waiting.set(updates)

    def miss(self) -> None:
        """A round ended without a quorum."""
        self._missed.inc()

    def merge(self, entry: Merge) -> None:
        """A merge is committed."""
        self._version.set(entry.version)
        self._waiting.set(0)
        self._merged.inc(len(entry.merged))
        self._leave_out(each.reason for each in entry.left_out)
        self._bytes.inc(entry.metrics["bytes"])
        self._seconds.observe(entry.metrics["seconds"])
        if "epsilon" in entry.metrics:
            self._epsilon.set(entry.metrics["epsilon"])

    def _leave_out(self, reasons: Iterable[str]) -> None:
        for reason in reasons:
            self._left_out.labels(reason).inc()
