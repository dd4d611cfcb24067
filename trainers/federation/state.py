"""What the topics tell a coordinator that starts, and what it keeps in mind while it goes on.

    F.rounds ──entry by entry──► State: where to read on, who is done with what, which round is open

The same function takes in what is read at the start and what is committed later, so a coordinator that was killed
knows what it knew.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from schemas.errors import RecordError, StateError
from schemas.federation import LeftOutReason, Merge, RoundOrder, RoundsEntry, decode_rounds_entry

NOT_THE_SITES: Final[tuple[LeftOutReason, ...]] = ("forged", "unknown_site")
"""Reasons of updates that somebody else announced: they say nothing of the site's sequence, and its files stay."""
_NORMS: Final = 50
"""Sites whose last norm is known."""


@dataclass
class State:
    """Of a federation, up to the last committed entry."""

    remembered: int = 20
    """Global versions whose age is known: ``max_staleness`` and the present one."""
    generation: int = 0
    version: int = 0
    """Newest global version; 0 before the first."""
    merges: int = 0
    round: int = 0
    """Newest round; 0 before the first."""
    position: int = 0
    """Next offset of the updates topic to read."""
    server_sha256: str | None = None
    open: RoundOrder | None = None
    """The round that is under way; null between two, and in an asynchronous federation."""
    last: RoundOrder | None = None
    """The round that was merged last."""
    sequences: dict[str, int] = field(default_factory=dict)
    """Highest sequence of each site that was merged or left out."""
    parts: Counter[str] = field(default_factory=Counter)
    """Merges that each site was part of."""
    orders: int = 0
    """Rounds ordered."""
    norms: dict[str, float] = field(default_factory=dict)
    """What is usual in an asynchronous federation: one norm of each site, so that none outvotes the others, of its last
    update that was merged or too large, so that all of them may change. The one heard of last is the last."""
    versions: deque[int] = field(default_factory=deque)
    """Global versions, oldest first."""

    def take(self, entry: RoundsEntry) -> None:
        """Takes in an entry of the topic, in the order of the topic."""
        self.generation = max(self.generation, entry.generation)
        if isinstance(entry, RoundOrder):
            self.open, self.round = entry, entry.round
            self.orders += 1
        elif isinstance(entry, Merge):
            self._take_merge(entry)
        elif entry.version != self.version:
            self._go_on_to(entry.version)

    def _go_on_to(self, version: int) -> None:
        self.version = version
        self.versions.append(version)
        while len(self.versions) > self.remembered + 1:
            self.versions.popleft()

    def _take_merge(self, entry: Merge) -> None:
        self._go_on_to(entry.version)
        self.merges += 1
        self.position, self.server_sha256 = entry.position, entry.server_sha256
        self.open, self.last = None, self.open
        for merged in entry.merged:
            self.note(merged.site, merged.sequence)
        for left in entry.left_out:
            if left.sequence is not None and left.reason not in NOT_THE_SITES:
                self.note(left.site, left.sequence)
        self.parts.update(each.site for each in entry.merged)
        told = [(each.at, each.site, each.norm) for each in entry.merged]
        told += [(left.at or 0, left.site, left.norm) for left in entry.left_out if left.norm is not None]
        for _, site, norm in sorted(told):
            self.note_norm(site, norm)

    def note(self, site: str, sequence: int) -> None:
        """A site's update was looked at: it is a duplicate from now on."""
        self.sequences[site] = max(sequence, self.sequences.get(site, 0))

    def note_norm(self, site: str, norm: float) -> None:
        """An update of a site had this norm."""
        self.norms.pop(site, None)
        self.norms[site] = norm
        if len(self.norms) > _NORMS:
            self.norms.pop(next(iter(self.norms)))

    def staleness(self, base_version: int) -> int | None:
        """Merges since a global version; null if it is too old, or never was."""
        if base_version not in self.versions:
            return None
        return len(self.versions) - 1 - self.versions.index(base_version)


def read_state(records: Iterable[Any], remembered: int) -> State:
    """The state that the records of ``F.rounds`` lead to.

    Raises:
        StateError: one of them is not an entry.
    """
    state = State(remembered)
    for record in records:
        try:
            state.take(decode_rounds_entry(record.value))
        except RecordError as error:
            raise StateError(f"{record.topic} offset {record.offset} is not an entry: {error}") from error
    return state
