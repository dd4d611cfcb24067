"""Which groups of the log a scorer trains and which it only looks at: each once, in the order of arrival.

    arrival ──► known? usable? ──► held out by the hash of its id? ─┬─► the newest of them, for reports
                                                                    └─► waiting ──► the oldest ones: a step

Pure bookkeeping: no Kafka, no tensors.
"""

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from schemas.identity import GroupId
from trainers.accounts import Accounts
from trainers.planner import Arrival, positions_before
from trainers.purposes import RATED

_HASH_BYTES: Final = 8


def is_held_out(run: str, group: GroupId, share: float) -> bool:
    """Whether a group is one of those that are not trained: the same ones whoever asks and whenever."""
    digest = hashlib.sha256(f"{run}/{group.partition}/{group.offset}".encode()).digest()
    return int.from_bytes(digest[:_HASH_BYTES], "big") < share * (1 << 8 * _HASH_BYTES)


@dataclass(slots=True)
class Backlog:
    """Takes arrivals one by one and gives the groups of steps."""

    run: str
    share: float
    """Of the groups that are held out."""
    can_teach: Callable[[Arrival], bool]
    held_out: deque[Arrival]
    """The newest ones, at most as many as it was made for."""
    accounts: Accounts = field(default_factory=Accounts)
    """What was trained, or is of no use."""
    waiting: dict[GroupId, Arrival] = field(default_factory=dict)

    def offer(self, arrival: Arrival) -> None:
        """Takes a group; one that is known, or that teaches nothing, is passed over.

        The difference that a correction brings, or the weight of a demonstration, is not how good an answer is.
        """
        group = arrival.group
        if group in self.waiting or self.accounts.is_finished(group):
            return
        if arrival.purpose not in RATED or not self.can_teach(arrival):
            self.accounts.finish(group)
        elif is_held_out(self.run, group, self.share):
            self.accounts.finish(group)
            self.held_out.append(arrival)
        else:
            self.waiting[group] = arrival

    def take(self, number: int) -> list[Arrival]:
        """The groups of a step, at most so many."""
        taken = list(self.waiting.values())[:number]
        for arrival in taken:
            del self.waiting[arrival.group]
            self.accounts.finish(arrival.group)
        return taken

    def positions(self, next_offsets: dict[int, int]) -> dict[int, int]:
        """From where a successor has to read each trajectories partition to find what is waiting here."""
        return positions_before(self.waiting.values(), next_offsets)
