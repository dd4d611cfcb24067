"""The coordinator of a federation: asks sites for updates, merges what they send, publishes global versions.

    start    fence older coordinators → read F.rounds → newest global version, verified → go on where it stopped
    order    who is there → a selection of them → RoundOrder
    gather   announcement → examine → spool, until all have answered or the deadline has passed
    merge    strategy → new version in the store → one transaction: Merge + WeightVersion + the next RoundOrder
    clean    files of merged updates, old versions

What it knows is in its topics and in the store, so it can be killed at any instant: updates are read again from the
position of the last merge, and one that is in a merge is a duplicate for ever. An asynchronous federation has no
orders: updates are gathered until ``buffer`` of them are there.
"""

import random
import time
from collections.abc import Callable, Sequence
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
from trainers.federation.bases import Bases
from trainers.federation.examine import Candidate, Examiner, LeftOut
from trainers.federation.layout import Layout, Row
from trainers.federation.merging import Gathered, Merger
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
    """
    strategy = strategy_of(config)
    with broker_errors(config):
        writer = Writer(config)
        try:
            Coordinator(config, strategy, writer).run()
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
            "measured for strategies that add updates up; take fedavg, fedavgm, fedadam, fedasync or fedbuff"
        )
    if config.asynchronous and strategy.mixes and config.keep <= config.max_staleness:
        raise ConfigError(
            f"strategy {strategy.name} needs the versions that updates started from: keep = {config.keep} has to be "
            f"above max_staleness = {config.max_staleness}; raise the one or lower the other"
        )
    return strategy


class Coordinator:
    """One generation of it. All methods belong to one thread."""

    def __init__(self, config: FederationConfig, strategy: Strategy, writer: Writer) -> None:
        self._config, self._strategy, self._writer = config, strategy, writer
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
        self._told = 0
        """The round of which the log has said already that it missed its quorum, or waits for sites."""

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
            while not self._is_done():
                record = self._inbox.next(_POLL_S)
                if record is not None:
                    self._take(record)
                idle = record is None
                if self._is_complete() or (self._is_due(idle=idle) and self._is_enough()):
                    self._merge()
                if self._is_due(idle=idle):
                    self._order_again()
        finally:
            self._inbox.close()
            self._spool.close()

    def _is_done(self) -> bool:
        if self._config.rounds is not None and self._state.merges >= self._config.rounds:
            _log.info("all rounds are done", merges=self._state.merges, version=self._state.version)
            return True
        most = self._config.privacy.max_epsilon
        if most is not None and self._merger.epsilon(self._state, set()) > most:
            _log.info("the next merge could spend more than the budget of privacy", max_epsilon=most)
            return True
        return False

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
        following, missed = self._order(self._state.version), self._open
        if missed is not None and self._told != missed.round:
            self._told = missed.round
            _log.warning("a round missed its quorum", round=missed.round, quorum=missed.quorum,
                         updates=len(self._gathered.candidates), left_out=len(self._gathered.left_out))  # fmt: skip
        if following is None and self._told != self._state.round + 1:
            self._told = self._state.round + 1
            _log.info("waiting for sites", heard_of=sorted(self._inbox.heard)[:10], quorum=self._config.quorum)
        if following is not None:
            self._writer.commit([following])
            self._state.take(following)
            self._gathered.judged = len(self._gathered.left_out)
            crash_point("round_ordered")

    def _order(self, base_version: int) -> RoundOrder | None:
        """The next round; null while there are too few sites.

        Sites whose update for this version has come already stay part of it.
        """
        config = self._config
        here = present(self._inbox.heard, now(), config.selection.gone_after_s)
        chosen = select(here, config.selection, self._chance, independently=bool(config.privacy.noise_multiplier))
        asked = orders(chosen, config.selection)
        again: set[str] = set()
        if self._open and base_version == self._state.version:
            asked |= {site: self._open.sites[site] for site in self._gathered.sites}
            again = self._gathered.spoilt & asked.keys()
        if len(asked) < config.quorum:
            return None
        deadline = now() + timedelta(seconds=config.deadline_s)
        return RoundOrder(generation=self._state.generation, round=self._state.round + 1, base_version=base_version,
                          sites=asked, again=tuple(sorted(again)), quorum=config.quorum,
                          deadline_at=deadline)  # fmt: skip

    # ------------------------------------------------------------------ gather

    def _take(self, record: Any) -> None:
        """Takes an announcement: into the spool, or to those that are left out."""
        self._gathered.position = record.offset + 1
        try:
            update = self._examiner.announced(record.value, self._state, self._gathered.sites)
            self._bases.require(update)
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
        rounds = self._config.rounds
        ends = rounds is not None and self._state.merges + 1 >= rounds
        following = None if ends or self._config.asynchronous else self._order(entry.version)
        self._writer.commit([entry, announced, *([following] if following else [])])
        crash_point("merge_committed")
        self._state.take(entry)
        if following:
            self._state.take(following)
        figures = {name: round(value, 4) for name, value in entry.metrics.items()}
        _log.info("merged", version=entry.version, round=entry.round, updates=len(entry.merged),
                  left_out=len(entry.left_out), **figures)  # fmt: skip

    # ------------------------------------------------------------------ clean

    def _clean(self) -> None:
        """Forgets what is merged; files that cannot be removed are only told of."""
        gathered, self._gathered = self._gathered, Gathered(position=self._gathered.position)
        for each in gathered.candidates:
            self._spool.free(each.slot)
        try:
            for site, sequence in (
                [] if self._config.keep_updates else _files_of(gathered.candidates, gathered.left_out)
            ):
                self._examiner.remove(site, sequence)
            crash_point("updates_removed")
            self._versions.prune(self._state.version)
        except OSError as error:
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
        except OSError as error:
            _log.warning("the federation's store does not answer, trying again", what=what, error=str(error))
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
