"""One merge: the updates that have come, what each of them counts, and the entry of the log that says so.

candidates ──weights, clipping, noise──► parts ──merge──► row, server's state
└──► Merge: who is in it, who is not and why, the budget spent
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.federating import FederationConfig
from schemas.federation import LeftOutReason, LeftOutUpdate, Merge, MergedUpdate, RoundOrder
from trainers.federation import privacy
from trainers.federation.arithmetic import Part, combine
from trainers.federation.bases import Bases
from trainers.federation.examine import Candidate
from trainers.federation.layout import Row
from trainers.federation.spool import Spool
from trainers.federation.state import State
from trainers.federation.strategies import Strategy, discount, sizes_to_shares

_SPOILT: tuple[LeftOutReason, ...] = ("bad_manifest", "nonfinite", "wrong_shape", "too_large")


@dataclass
class Gathered:
    """What has come for the next merge."""

    candidates: list[Candidate] = field(default_factory=list)
    left_out: list[LeftOutUpdate] = field(default_factory=list)
    position: int = 0
    """Next offset to read."""
    bytes: int = 0
    judged: int = 0
    """Of those left out, how many the present order knew of."""
    since: float = field(default_factory=time.monotonic)

    @property
    def sites(self) -> set[str]:
        """Those that have sent what may be merged."""
        return {each.update.site for each in self.candidates}

    @property
    def spoilt(self) -> set[str]:
        """Those whose update was left out since the present order, and that have sent no other."""
        return {each.site for each in self.left_out[self.judged :] if each.reason in _SPOILT} - self.sites

    def answered(self, order: RoundOrder | None) -> set[str]:
        """Those of which nothing more is waited for.

        A coordinator that was started again does not know which of those left out the order knew of: it waits for
        those that were asked again.
        """
        again = set(order.again) if order and not self.judged else set[str]()
        return self.sites | (self.spoilt - again)

    def set_aside(self, outliers: set[int]) -> list[Candidate]:
        """Moves candidates, by their offsets, to those that are too large; returns them."""
        aside = [each for each in self.candidates if each.at in outliers]
        self.candidates = [each for each in self.candidates if each.at not in outliers]
        self.left_out += [each.left_out("too_large") for each in aside]
        return aside


class Merger:
    """Knows the configuration. Everything else is given."""

    def __init__(self, config: FederationConfig, strategy: Strategy, spool: Spool, bases: Bases) -> None:
        self._config, self._strategy, self._spool, self._bases = config, strategy, spool, bases

    def weights(self, kept: Sequence[Candidate], state: State, order: RoundOrder | None) -> list[float]:
        """The share of each update, with what its staleness leaves of it.

        With noise each counts one in as many as could have come, so that nobody's share tells of others. A strategy
        that does not take shares counts all alike.
        """
        if "shares_S" not in self._strategy.takes:
            return [1 / len(kept)] * len(kept)
        config = self._config.strategy
        by = config.weigh_by
        shares = sizes_to_shares([1 if by == "equal" else getattr(each.update, by) for each in kept])
        if self._config.privacy.noise_multiplier:
            shares = shares * (len(kept) / self._asked(order))
        stale = [_staleness(each, state) for each in kept]
        left = discount(config.staleness, stale, config.staleness_exponent, config.staleness_grace)
        return [float(share) for share in shares * left]

    def _asked(self, order: RoundOrder | None) -> int:
        return len(order.sites) if order else self._config.buffer

    def merge(
        self, kept: Sequence[Candidate], weights: Sequence[float], order: RoundOrder | None, present: Row,
        server: dict[str, Row],
    ) -> tuple[Row, dict[str, Row]]:  # fmt: skip
        """The next version's numbers, and the server's next state."""
        private = self._config.privacy
        parts = [
            Part(each.slot, weight, privacy.clip_factor(each.norm, private.clip_norm), self._bases.slot(each.update))
            for each, weight in zip(kept, weights, strict=True)
        ]
        if not private.noise_multiplier or private.clip_norm is None:
            return combine(self._strategy, parts, self._spool, present, server, self._config.chunk_bytes)
        noise = self._spool.put(privacy.noise(present.size, private.noise_multiplier, private.clip_norm))
        parts.append(Part(noise, 1 / self._asked(order)))
        try:
            return combine(self._strategy, parts, self._spool, present, server, self._config.chunk_bytes)
        finally:
            self._spool.free(noise)

    def entry(  # noqa: PLR0913, PLR0917 - what a merge is
        self, gathered: Gathered, weights: Sequence[float], state: State, order: RoundOrder | None, version: int,
        server_sha256: str | None,
    ) -> Merge:  # fmt: skip
        """What the log says of it."""
        silent = sorted(set(order.sites) - gathered.sites - gathered.spoilt) if order else []
        return Merge(
            generation=state.generation,
            round=order.round if order else None,
            base_version=state.version,
            version=version,
            strategy=self._strategy.name,
            merged=tuple(self._merged(*each, state) for each in zip(gathered.candidates, weights, strict=True)),
            left_out=(*gathered.left_out, *(LeftOutUpdate(site=site, reason="silent") for site in silent)),
            position=gathered.position,
            server_sha256=server_sha256,
            metrics=self._metrics(gathered, state),
        )

    def _metrics(self, gathered: Gathered, state: State) -> dict[str, float]:
        told = {"bytes": float(gathered.bytes), "seconds": time.monotonic() - gathered.since}
        private, selection = self._config.privacy, self._config.selection
        if private.noise_multiplier:
            told["epsilon"] = self.epsilon(state, gathered.sites)
        if private.noise_multiplier and selection.by == "random" and not self._config.asynchronous:
            told["epsilon_sampled"] = privacy.spent(
                private.noise_multiplier, state.orders, private.delta, selection.share
            )
        return told

    def epsilon(self, state: State, sites: set[str]) -> float:
        """Spent by the site that took part most often, once these have taken part once more.

        Args:
            state: before.
            sites: who takes part; empty for whoever took part most.
        """
        private, parts = self._config.privacy, state.parts
        times = [parts[site] + 1 for site in sites] or [max(parts.values(), default=0) + 1]
        return privacy.spent(private.noise_multiplier, max(*times, *parts.values(), 1), private.delta)

    def _merged(self, each: Candidate, weight: float, state: State) -> MergedUpdate:
        """With noise without what tells of the site's data: the log has readers."""
        update, noise = each.update, self._config.privacy.noise_multiplier
        samples, norm = (0, 0.0) if noise else (update.samples, each.norm)
        return MergedUpdate(site=update.site, sequence=update.sequence, at=each.at, samples=samples, weight=weight,
                            norm=norm, staleness=_staleness(each, state))  # fmt: skip


def _staleness(each: Candidate, state: State) -> int:
    return state.staleness(each.update.base_version) or 0
