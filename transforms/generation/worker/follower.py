"""The weight follower: takes every announced version into the running engine, or refuses it.

    weights topic ─► newest announcement ─► fetch ─► verify ─► open ─► pause, load, resume ─► probe ─► applied
                                              └──────── refused: logged, counted, the old version stays

Nothing that does not verify is loaded. A version that verifies and then answers the probe otherwise
than the learner did ends the worker: its weights are wrong and the right ones are gone.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from schemas import traces
from schemas.errors import RecordError, StateError
from schemas.records import now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from schemas.trace_context import TraceContext
    from schemas.weights import WeightVersion
    from transforms.generation.worker.engine import Engine
    from transforms.generation.worker.state import WorkerState
    from transforms.generation.worker.verify import Probe, Verified

_LOOKS: Final = 3
"""How often a version answers the probe before it is found wrong. In 16 bits an answer depends on what else the engine
computes at that moment: of a hundred versions of one run, all right, 99 differed by up to 0.07 and one by 0.11."""
_POLL_S: Final = 0.5
"""Longest wait of one look at the topic, and so the longest that stopping waits for it."""

log = structlog.get_logger(__name__)


class Source(Protocol):
    """Where announcements come from: ``announcements.Announcements``, or a list in a test."""

    def newest(self, timeout_s: float) -> WeightVersion | None:
        """The newest announcement since the last call; None if none came in time."""


@dataclass(frozen=True)
class Follower:
    """Keeps the engine at the newest version."""

    source: Source
    read: Callable[[WeightVersion], Awaitable[Verified]]
    """Makes a version local and verifies it; raises ``RecordError`` if nothing of it may be loaded."""
    engine: Engine
    state: WorkerState
    probe_tolerance: float
    """Largest mean absolute difference between the engine's and the learner's logprobs of the probe."""
    trace_of: Callable[[WeightVersion], TraceContext | None] = lambda _: None
    """The span that published a version; null where nothing is traced."""

    async def run(self, first: WeightVersion | None = None) -> None:
        """Follows until it is cancelled.

        Args:
            first: an announcement that was read already.

        Raises:
            StateError: the engine's weights are not those that were announced.
        """
        announced = first
        while True:
            if announced is not None:
                await self.take(announced)
            announced = await asyncio.to_thread(self.source.newest, _POLL_S)

    async def take(self, announced: WeightVersion) -> bool:
        """Loads one version, or refuses it.

        Returns:
            Whether it was loaded.

        Raises:
            StateError: it was loaded and is wrong.
        """
        with traces.spanning(traces.below(self.trace_of(announced)), "load", version=announced.version) as span:
            return await self._take(announced, span)

    async def _take(self, announced: WeightVersion, span: traces.Span) -> bool:
        try:
            self._check_order(announced)
            seen_s = (now() - announced.published_at).total_seconds()
            seen = time.monotonic()
            verified = await self.read(announced)
            checked = time.monotonic()
            await self._open(verified)
        except RecordError as refusal:
            self._refuse(announced, refusal)
            span.fault = refusal.reason
            return False
        took = {"seen_s": seen_s, "verify_s": checked - seen, "open_s": time.monotonic() - checked}
        await self._load(verified, took)
        span.attributes |= {name: round(seconds, 3) for name, seconds in took.items()}
        return True

    async def _open(self, verified: Verified) -> None:
        if verified.adapter is not None:
            await self.engine.open_adapter(verified.adapter)
        elif verified.snapshot is not None:
            await self.engine.open_snapshot(*verified.snapshot)
        else:
            await self.engine.open_files(verified.files)

    def _check_order(self, announced: WeightVersion) -> None:
        served = self.state.applied
        if served is not None and not announced.supersedes(served):
            given = f"version {announced.version} of generation {announced.generation}"
            raise RecordError("old", f"{given} after version {served.version} of generation {served.generation}")

    def _refuse(self, announced: WeightVersion, refusal: RecordError) -> None:
        log.error(
            "version_refused",
            version=announced.version,
            reason=refusal.reason,
            detail=refusal.detail,
            serving=self.state.version,
        )
        self.state.refuse(refusal.reason)

    async def _load(self, verified: Verified, took: dict[str, float]) -> None:
        announced, probe = verified.announced, verified.probe
        in_flight = self.state.requests_running > 0
        self.state.begin_update()
        loading = await self.engine.load(announced.version, probe.token_ids)
        difference = await self._compare(probe, loading.probe_logprobs)
        if not difference <= self.probe_tolerance:
            raise StateError(
                f"version {announced.version} is loaded, but the engine's logprobs of the probe differ from the "
                f"learner's by {difference:.2e} in the mean, allowed are {self.probe_tolerance:.0e}; the worker stops"
            )
        await self.state.apply(announced, in_flight=in_flight, pause_s=loading.pause_s)
        took |= {"pause_s": loading.pause_s, "load_s": loading.load_s, "probe_s": loading.probe_s}
        log.info(
            "version_applied",
            version=announced.version,
            step=announced.step,
            in_flight=in_flight,
            **{name: round(seconds, 3) for name, seconds in took.items()},
            probe_difference=f"{difference:.1e}",
        )

    async def _compare(self, probe: Probe, logprobs: list[float]) -> float:
        """The smallest difference of several answers: rounding changes from one to the next, wrong weights do not."""
        difference = probe.difference(logprobs)
        for look in range(2, _LOOKS + 1):
            if difference <= self.probe_tolerance:
                break
            log.warning("probe_repeated", difference=f"{difference:.1e}", look=look)
            difference = min(difference, probe.difference(await self.engine.prompt_logprobs(probe.token_ids)))
        return difference
