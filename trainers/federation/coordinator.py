"""The coordinator of a federation: asks sites for updates, merges what they send, publishes global versions.

    start    fence older coordinators → read F.rounds → newest global version, verified → go on where it stopped
    order    who is there → a selection of them → RoundOrder
    gather   announcement → examine → spool, until all have answered or the deadline has passed
    merge    strategy → new version in the store → one transaction: Merge + WeightVersion + the next RoundOrder
    clean    files of merged updates, old versions; at the start too, what was left of them

What it knows is in its topics and in the store, so it can be killed at any instant: updates are read again from the
position of the last merge, and one that is in a merge is a duplicate for ever. An asynchronous federation has no
orders: updates are gathered until ``buffer`` of them are there.
"""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

import numpy as np
import structlog

from schemas.crash_points import crash_point
from schemas.errors import ConfigError, RecordError, StateError
from schemas.federating import FederationConfig
from schemas.federation import CoordinatorStart, LeftOutUpdate, Merge, RoundOrder, SiteUpdate
from schemas.records import now
from schemas.weights import WeightVersion
from trainers.federation.away import is_away
from trainers.federation.bases import Bases
from trainers.federation.examine import Candidate, Examiner, LeftOut
from trainers.federation.figures import Figures
from trainers.federation.layout import Layout, Row
from trainers.federation.merge import Gathered, Merger
from trainers.federation.selection import orders, present, select
from trainers.federation.spool import Spool
from trainers.federation.state import NOT_THE_SITES, read_state
from trainers.federation.strategies import Strategy, find
from trainers.federation.topics import Inbox, Writer
from trainers.federation.versions import Versions
from trainers.log import broker_errors, stream_topic

_POLL_S: Final = 0.2
_OVERDUE_S: Final = 10.0
"""So long after its deadline a round ends even though announcements still come in."""
_TELL_S: Final = 30.0
"""Between two lines of the log that say what is waited for."""
_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


def run(config: FederationConfig) -> int:
    """Coordinates until ``rounds`` merges are done, or the budget of privacy is spent.

    Raises:
        ConfigError: strategy, arguments or keys are wrong.
        BrokerError: Kafka cannot be reached.
        StateError: the topics or the store are not as they were left.
        FencedError: a newer coordinator took over.
        PortError: something else listens at ``metrics_port``.
    """
    strategy, figures = strategy_of(config), Figures(config.metrics_port, config.metrics_host)
    with broker_errors(config):
        writer = Writer(config)
        try:
            Coordinator(config, strategy, writer, figures).run()
        finally:
            writer.close()
    return 0


def strategy_of(config: FederationConfig) -> Strategy:
    """The configured strategy, if it goes with the rest of the configuration.

    Raises:
        ConfigError: it does not.
    """
    strategy = find(config.strategy.name, config.strategy.arguments)
    if config.privacy.noise_multiplier and not strategy.adds_up:
        raise ConfigError(
            f"privacy.noise_multiplier = {config.privacy.noise_multiplier} with strategy {strategy.name}: the noise is "
            "measured for strategies that add updates up; take fedavg, fedavgm, fedadam or fedbuff"
        )
    if config.privacy.noise_multiplier and strategy.mixes:
        raise ConfigError(
            f"privacy.noise_multiplier = {config.privacy.noise_multiplier} with strategy {strategy.name}: the way from "
            "the present version to an update's base is added too, and not clipped; take fedbuff"
        )
    if config.asynchronous and strategy.mixes and config.keep <= config.max_staleness:
        raise ConfigError(
            f"strategy {strategy.name} needs the versions that updates started from: keep = {config.keep} has to be "
            f"above max_staleness = {config.max_staleness}; raise the one or lower the other"
        )
    return strategy


class Coordinator:
    """One generation of it. All methods belong to one thread."""

    def __init__(self, config: FederationConfig, strategy: Strategy, writer: Writer, figures: Figures) -> None:
        self._config, self._strategy, self._writer, self._figures = config, strategy, writer, figures
        self._versions = Versions(config)
        self._state = read_state(stream_topic(config, config.topics.rounds), config.max_staleness)
        known = self._announced()
        self._layout, self._row = self._begin(known)
        self._chance = random.Random(f"{config.seed}/{self._state.generation}")
        self._server = self._server_state()
        self._spool = Spool(self._layout.size, config.spool)
        wanted = config.asynchronous and strategy.mixes
        self._bases = Bases(self._versions, known, self._spool, wanted=wanted)
        self._bases.begin(self._state.version)
        self._merger = Merger(config, strategy, self._spool, self._bases)
        self._examiner = Examiner(config, self._layout)
        self._inbox = Inbox(config, self._state.position)
        self._gathered = Gathered(position=self._state.position)
        self._told: tuple[int | None, float] = (None, 0.0)
        """The round that was waiting for something when the log said so last, and when that was (monotonic, s)."""

    @property
    def _open(self) -> RoundOrder | None:
        """The round that is under way."""
        return None if self._config.asynchronous else self._state.open

    @property
    def _needed(self) -> int:
        """Updates without which nothing is merged."""
        return self._open.quorum if self._open else self._config.buffer

    # ------------------------------------------------------------------ start

    def _begin(self, known: dict[int, WeightVersion]) -> tuple[Layout, Row]:
        """The newest global version, or the first one; announces that this coordinator leads from now on."""
        generation, decisions = self._state.generation + 1, list[Any]()
        if known:
            announced = known[max(known)]
            layout, row = self._versions.read(announced)
        else:
            layout, row = self._versions.initial()
            announced = self._versions.write(self._versions.newest() + 1, 0, generation, layout, row)
            decisions.append(announced)
        start = CoordinatorStart(generation=generation, version=announced.version, strategy=self._strategy.name,
                                 asynchronous=self._config.asynchronous)  # fmt: skip
        self._writer.commit([start, *decisions])
        self._state.take(start)
        self._figures.lead(announced.version)
        _log.info("coordinator started", federation=self._config.name, generation=generation,
                  version=announced.version, merges=self._state.merges, numbers=layout.size)  # fmt: skip
        return layout, row

    def _announced(self) -> dict[int, WeightVersion]:
        """The versions that updates may have started from; none for a federation that begins."""
        found: dict[int, WeightVersion] = {}
        newest = 0
        for record in stream_topic(self._config, self._config.topics.weights):
            announced = WeightVersion.decode(record.value)
            newest = announced.version
            if newest in self._state.versions:
                found[newest] = announced
        if newest != self._state.version:
            raise StateError(
                f"{self._config.topics.weights} ends with version {newest or None}, and {self._config.topics.rounds} "
                f"with {self._state.version or None}: they do not belong together; restore them"
            )
        return found

    def _server_state(self) -> dict[str, Row]:
        """Of the strategy; zeros where it has just begun, or where another strategy was at work before."""
        state: dict[str, Row] = {}
        if self._state.server_sha256:
            state = self._versions.read_state(self._state.version, self._state.server_sha256)
        if state.keys() == set(self._strategy.state):
            return state
        if state:
            _log.warning("the server's state begins anew: it is another strategy's", state=sorted(state))
        return {name: np.zeros(self._layout.size, dtype=np.float32) for name in self._strategy.state}

    # ------------------------------------------------------------------ loop

    def run(self) -> None:
        """Until the configured number of merges is done, or no budget is left."""
        try:
            self._remove(self._sweep)
            while (why := self._why_it_ends()) is None:
                record = self._inbox.next(_POLL_S)
                if record is not None:
                    self._take(record)
                idle = record is None
                if self._is_complete() or (self._is_due(idle=idle) and self._is_enough()):
                    self._merge()
                elif self._is_due(idle=idle):
                    self._order_again()
            _log.info(why, merges=self._state.merges, version=self._state.version)
        finally:
            self._inbox.close()
            self._spool.close()

    def _why_it_ends(self) -> str | None:
        """Null while it goes on."""
        if self._config.rounds is not None and self._state.merges >= self._config.rounds:
            return "all rounds are done"
        most = self._config.privacy.max_epsilon
        if most is not None and self._merger.epsilon(self._state, set()) > most:
            return f"the next merge could spend more than privacy.max_epsilon = {most:g}"
        return None

    def _is_enough(self) -> bool:
        return len(self._gathered.candidates) >= self._needed

    def _is_complete(self) -> bool:
        """Whether nothing more is waited for."""
        if not self._is_enough():
            return False
        answered = self._gathered.answered(self._open)
        return self._config.asynchronous or bool(self._open and self._open.sites.keys() <= answered)

    def _is_due(self, *, idle: bool) -> bool:
        """Whether it is time to end the round, or to begin one; what came before the deadline is read first."""
        if self._config.asynchronous or not self._inbox.has_caught_up:
            return False
        if self._open is None:
            return idle
        overdue = now() - self._open.deadline_at
        return overdue > timedelta() and (idle or overdue > timedelta(seconds=_OVERDUE_S))

    # ------------------------------------------------------------------ order

    def _order_again(self) -> None:
        """Begins a round where there is none, or another where the deadline passed without a quorum."""
        following, missed = self._order(), self._open
        if missed is not None and following:
            self._figures.miss()
        if missed is not None and (following or self._is_untold()):
            _log.warning("a round missed its quorum", round=missed.round, quorum=missed.quorum,
                         updates=len(self._gathered.candidates), left_out=len(self._gathered.left_out))  # fmt: skip
        if following is None and self._is_untold():
            self._told = (self._state.round, time.monotonic())
            here = [each.site for each in present(self._inbox.heard, now(), self._config.selection.gone_after_s)]
            _log.warning("waiting for sites: a round asks fewer than its quorum", quorum=self._config.quorum,
                         selection=self._config.selection.by, share=self._config.selection.share, here=len(here),
                         names=here[:10], gone=len(self._inbox.heard) - len(here))  # fmt: skip
        if following is not None:
            self._writer.commit([following])
            self._begin_round(following)
            self._gathered.judged = len(self._gathered.left_out)
            crash_point("round_ordered")

    def _begin_round(self, order: RoundOrder) -> None:
        self._state.take(order)
        self._figures.ask(len(order.sites))

    def _is_untold(self) -> bool:
        """Whether the log has not said for a while what this round waits for."""
        told, at = self._told
        return told != self._state.round or time.monotonic() - at > _TELL_S

    def _order(self) -> RoundOrder | None:
        """The next round; null while there are too few sites.

        Sites whose update for this version has come already stay part of it.
        """
        config = self._config
        here = present(self._inbox.heard, now(), config.selection.gone_after_s)
        self._figures.hear(len(here))
        chosen = select(here, config.selection, self._chance, independently=bool(config.privacy.noise_multiplier))
        asked = orders(chosen, config.selection)
        again: set[str] = set()
        if self._open:
            asked |= {site: self._open.sites[site] for site in self._gathered.sites}
            again = self._gathered.spoilt & asked.keys()
        if len(asked) < config.quorum:
            return None
        deadline = now() + timedelta(seconds=config.deadline_s)
        return RoundOrder(generation=self._state.generation, round=self._state.round + 1,
                          base_version=self._state.version, sites=asked, again=tuple(sorted(again)),
                          quorum=config.quorum, deadline_at=deadline)  # fmt: skip

    # ------------------------------------------------------------------ gather

    def _take(self, record: Any) -> None:
        """Takes an announcement: into the spool, or to those that are left out."""
        self._gathered.position = record.offset + 1
        try:
            update = self._examiner.announced(record.value, self._state, self._gathered.sites)
            patiently(lambda: self._bases.require(update), f"version {update.base_version}")
            row, norm = patiently(lambda: self._examiner.numbers(update), f"update {update.sequence} of {update.site}")
        except RecordError as error:
            self._leave_out(record, LeftOut("bad_manifest", str(error)))
            return
        except LeftOut as verdict:
            self._leave_out(record, verdict)
            return
        self._state.note(update.site, update.sequence)
        self._gathered.candidates.append(Candidate(update, record.offset, norm, self._spool.put(row)))
        self._gathered.bytes += update.bytes
        self._figures.gather(len(self._gathered.candidates))
        crash_point("update_examined")

    def _leave_out(self, record: Any, verdict: LeftOut) -> None:
        site, sequence = _named(record.value)
        _log.warning("update left out", site=site, sequence=sequence, reason=verdict.reason, detail=verdict.detail)
        left = LeftOutUpdate(site=site, sequence=sequence, at=record.offset, reason=verdict.reason)
        self._gathered.left_out.append(left)
        if sequence is not None and verdict.reason not in NOT_THE_SITES:
            self._state.note(site, sequence)

    # ------------------------------------------------------------------ merge

    def _merge(self) -> None:
        """Makes a global version of what has come, and commits it with the next round."""
        gathered, order = self._gathered, self._open
        for each in gathered.set_aside(self._examiner.outliers(gathered.candidates, self._state)):
            self._spool.free(each.slot)
            self._state.note_norm(each.update.site, each.norm)
            _log.warning("update left out", site=each.update.site, sequence=each.update.sequence, reason="too_large",
                         detail=f"norm {each.norm:.4g}")  # fmt: skip
        if not self._is_enough():
            return
        kept = gathered.candidates
        weights = self._merger.weights(kept, self._state, order)
        row, server = self._merger.merge(kept, weights, order, self._row, self._server)
        announced, digest = patiently(lambda: self._publish(row, server), "global version")
        entry = self._merger.entry(gathered, weights, self._state, order, announced.version, digest)
        self._commit(entry, announced)
        self._bases.go_on(announced, self._row, self._state)
        self._row, self._server = row, server
        self._clean()

    def _publish(self, row: Row, server: dict[str, Row]) -> tuple[WeightVersion, str | None]:
        """Writes what nobody knows of until it is announced, under a number that was never used."""
        version = max(self._state.version, self._versions.newest()) + 1
        digest = self._versions.write_state(version, server)
        crash_point("server_state_written")
        step, generation = self._state.merges + 1, self._state.generation
        announced = self._versions.write(version, step, generation, self._layout, row)
        crash_point("merge_written")
        return announced, digest

    def _commit(self, entry: Merge, announced: WeightVersion) -> None:
        self._state.take(entry)
        goes_on = not self._config.asynchronous and self._why_it_ends() is None
        following = self._order() if goes_on else None
        self._writer.commit([entry, announced, *([following] if following else [])])
        crash_point("merge_committed")
        self._figures.merge(entry)
        if following:
            self._begin_round(following)
        figures = {name: round(value, 4) for name, value in entry.metrics.items()}
        _log.info("merged", version=entry.version, round=entry.round, updates=len(entry.merged),
                  left_out=len(entry.left_out), **figures)  # fmt: skip

    # ------------------------------------------------------------------ clean

    def _clean(self) -> None:
        """Forgets what is merged; files that cannot be removed are only told of."""
        gathered, self._gathered = self._gathered, Gathered(position=self._gathered.position)
        for each in gathered.candidates:
            self._spool.free(each.slot)
        self._remove(lambda: self._remove_files(_files_of(gathered.candidates, gathered.left_out)))

    def _remove_files(self, done_with: Iterable[tuple[str, int]]) -> None:
        for site, sequence in () if self._config.keep_updates else done_with:
            self._examiner.remove(site, sequence)
        crash_point("updates_removed")
        self._versions.prune(self._state.version)

    def _sweep(self) -> None:
        """Removes what a coordinator left that was killed before it could."""
        if not self._config.keep_updates:
            self._examiner.sweep(self._state.sequences)
        self._versions.prune(self._state.version)

    @staticmethod
    def _remove(job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            if not is_away(error):
                raise
            _log.warning("old files not removed", error=str(error))


def _files_of(merged: Sequence[Candidate], left_out: Sequence[LeftOutUpdate]) -> list[tuple[str, int]]:
    """The updates whose files the log is done with: not those that somebody else may still be about to announce."""
    kept = (*NOT_THE_SITES, "duplicate")
    return [
        *(each.update.name for each in merged),
        *((each.site, each.sequence) for each in left_out if each.sequence is not None and each.reason not in kept),
    ]


def _named(value: bytes | None) -> tuple[str, int | None]:
    """Whose update a record claims to be; nothing where it cannot be read."""
    try:
        return SiteUpdate.decode(value).name
    except RecordError:
        return "", None


def patiently(job: Callable[[], _T], what: str) -> _T:
    """Does something with the store, again and again while it does not answer."""
    pause_s = _PAUSE_S
    while True:
        try:
            return job()
        except Exception as error:
            if not is_away(error):
                raise
            _log.warning("the federation's store does not answer, trying again", what=what, error=str(error))
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
