"""The promises of a federation, checked from its topics alone.

F.updates ─┬─► every announcement before the last merge's position has one fate: merged, or left out with a reason
F.rounds  ─┤   no (site, sequence) is merged twice; versions follow each other; positions never go back
F.weights ─┘   every merge has its announcement, and every announcement but the first its merge
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from schemas.errors import RecordError
from schemas.federating import FederationConfig
from schemas.federation import Merge, RoundOrder, RoundsEntry, SiteUpdate, decode_rounds_entry
from schemas.weights import WeightVersion
from trainers.log import broker_errors, stream_topic


@dataclass(frozen=True)
class Announced:
    """A record of ``F.updates``."""

    at: int
    update: SiteUpdate | None
    """Null if it cannot be read."""


@dataclass
class Verdict:
    """What was found."""

    faults: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether all promises do."""
        return not self.faults

    def tell(self) -> dict[str, Any]:
        """As JSON."""
        return {"holds": self.holds, **self.counts, "faults": self.faults}


def audit(config: FederationConfig) -> Verdict:
    """Reads the topics and checks them.

    Raises:
        BrokerError: Kafka cannot be reached, or a topic does not exist.
    """
    topics = config.topics
    with broker_errors(config):
        entries = [decode_rounds_entry(record.value) for record in stream_topic(config, topics.rounds)]
        versions = [WeightVersion.decode(record.value) for record in stream_topic(config, topics.weights)]
        announced = [_announced(record) for record in stream_topic(config, topics.updates)]
    return check(entries, versions, announced)


def _announced(record: Any) -> Announced:
    try:
        return Announced(record.offset, SiteUpdate.decode(record.value))
    except RecordError:
        return Announced(record.offset, None)


def check(entries: Sequence[RoundsEntry], versions: Sequence[WeightVersion], announced: Sequence[Announced]) -> Verdict:
    """Compares what lies in the topics, each in its order."""
    merges = [entry for entry in entries if isinstance(entry, Merge)]
    faults = [*_fates(merges, announced), *_twice(merges), *_line(entries, merges), *_published(merges, versions),
              *_asked(entries)]  # fmt: skip
    position = merges[-1].position if merges else 0
    reasons = Counter(left.reason for merge in merges for left in merge.left_out)
    counts = {
        "versions": len(versions),
        "merges": len(merges),
        "updates": len(announced),
        "merged": sum(len(merge.merged) for merge in merges),
        "left_out": dict(sorted(reasons.items())),
        "waiting": sum(each.at >= position for each in announced),
        "generations": max((entry.generation for entry in entries), default=0),
    }
    return Verdict(faults, counts)


def _fates(merges: Iterable[Merge], announced: Sequence[Announced]) -> Iterator[str]:
    """Every announcement that was read has one fate, which is about itself."""
    by_offset, before = {each.at: each for each in announced}, 0
    offsets = [each.at for each in announced]
    for merge in merges:
        fates: list[tuple[int, str, int | None]] = [(each.at, each.site, each.sequence) for each in merge.merged]
        fates += [(left.at, left.site, left.sequence) for left in merge.left_out if left.at is not None]
        told = Counter(at for at, _, _ in fates)
        read = set(offsets[bisect_left(offsets, before) : bisect_left(offsets, merge.position)])
        where = f"version {merge.version}"
        yield from (f"{where}: the update at {at} has no fate: it is lost" for at in sorted(read - told.keys()))
        yield from (f"{where}: {at} is no update that it has read" for at in sorted(told.keys() - read))
        yield from (f"{where}: the update at {at} has {count} fates" for at, count in told.items() if count > 1)
        for at, site, sequence in fates:
            update = by_offset[at].update if at in by_offset else None
            if (update.name if update else ("", None)) != (site, sequence):
                yield f"{where}: at {at} lies {update.name if update else None}, not {site} {sequence}"
        before = merge.position


def _twice(merges: Iterable[Merge]) -> Iterator[str]:
    first: dict[tuple[str, int], int] = {}
    for merge in merges:
        for each in merge.merged:
            name = (each.site, each.sequence)
            if name in first:
                yield f"version {merge.version}: update {each.sequence} of {each.site} is in version {first[name]} too"
            first.setdefault(name, merge.version)


def _line(entries: Iterable[RoundsEntry], merges: Sequence[Merge]) -> Iterator[str]:
    """Generations, versions and positions only go on."""
    generation = 0
    for entry in entries:
        if entry.generation < generation:
            yield f"an entry of generation {entry.generation} after one of {generation}: two coordinators at once"
        generation = max(generation, entry.generation)
    for before, merge in pairwise(merges):
        if merge.base_version != before.version:
            yield f"version {merge.version} is based on {merge.base_version}, expected {before.version}"
        if merge.position < before.position:
            yield f"version {merge.version} reads on at {merge.position}, before {before.position}"
    yield from (f"version {each.version} is based on {each.base_version}" for each in merges
                if each.version <= each.base_version)  # fmt: skip


def _published(merges: Sequence[Merge], versions: Sequence[WeightVersion]) -> Iterator[str]:
    made, announced = [merge.version for merge in merges], [version.version for version in versions]
    if made != announced[1:]:
        odd = sorted(set(made) ^ set(announced[1:]))
        yield f"merges and announcements differ: versions {odd[:5] or 'in another order'}"


def _asked(entries: Iterable[RoundsEntry]) -> Iterator[str]:
    """Of a round only sites are merged, or silent, that it asked."""
    order: RoundOrder | None = None
    for entry in entries:
        if isinstance(entry, RoundOrder):
            order = entry
        elif isinstance(entry, Merge) and entry.round is not None:
            asked = set(order.sites) if order and order.round == entry.round else set()
            silent = {left.site for left in entry.left_out if left.reason == "silent"}
            odd = ({each.site for each in entry.merged} | silent) - asked
            yield from (f"version {entry.version}: round {entry.round} did not ask {site}" for site in sorted(odd))
