"""Which groups make the next step.

    arrivals ──► known? duplicate? variance? ──► waiting ──► too old? ──► the oldest ones: a Plan
                        └──────────────┴──────── drops ────────┘           of one rater no more than a share

Pure bookkeeping: no Kafka, no tensors. Of a dead line's steps the ledger is the planner (:func:`again`).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Final

from schemas.identity import GroupId
from schemas.ledger import DroppedGroup, DropReason, StepEntry, TrainedGroup
from schemas.trace_context import TraceContext
from schemas.trajectories import Sample
from trainers.accounts import Accounts, Place, Versions
from trainers.advantages import has_variance, is_known
from trainers.masks import trained_mask
from trainers.purposes import RATED

FRUITLESS_FACTOR: Final = 4
"""A step goes on with what it has after this many times its groups were dropped for zero variance."""
_ROUNDING: Final = 1e-9
"""0.29 of 100 groups are 29, and not 28 for the sake of the last bit."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A whole group, as it lies in the trajectories topic."""

    group: GroupId
    at: Place
    samples: tuple[Sample, ...]
    raters: frozenset[str] = frozenset()
    """Pseudonyms of those whose feedback it has."""
    trace: TraceContext | None = field(default=None, compare=False)
    """The span that those of the group go below; null where nothing is traced."""
    read_s: float = field(default=0.0, compare=False)
    """When it was read, in seconds since 1970."""

    @property
    def purpose(self) -> str:
        """Of all its rows, see :func:`trainers.purposes.find_misfit`."""
        return self.samples[0].purpose

    @property
    def rewards(self) -> list[float | None]:
        """Of the samples, in their order."""
        return [sample.reward for sample in self.samples]

    @property
    def oldest(self) -> int:
        """The oldest weight version among its tokens."""
        return min(sample.weight_version_min for sample in self.samples)

    @property
    def newest(self) -> int:
        """The newest weight version among its tokens."""
        return max(sample.weight_version_max for sample in self.samples)

    @property
    def highest_token(self) -> int:
        """Of prompts and answers."""
        return max(max((*sample.prompt_token_ids, *sample.response_token_ids)) for sample in self.samples)

    def versions(self) -> set[int]:
        """All versions among its tokens."""
        return {span.version for sample in self.samples for span in sample.weight_version_spans}

    def can_teach(self, too_old: Collection[int]) -> bool:
        """Whether a token that can be trained is of none of these versions."""
        rewarded = (sample for sample in self.samples if sample.reward is not None)
        return any(True in trained_mask(sample, too_old) for sample in rewarded)

    def trained(self) -> TrainedGroup:
        """Its line in the ledger."""
        return TrainedGroup(
            group=self.group,
            at=self.at,
            attempt=self.samples[0].attempt_id,
            samples=len(self.samples),
            versions=(self.oldest, self.newest),
        )

    def dropped(self, reason: DropReason) -> DroppedGroup:
        """Its line in the ledger."""
        return DroppedGroup(group=self.group, at=self.at, reason=reason)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one step consumes. No arrivals: the step is recorded and changes nothing."""

    arrivals: tuple[Arrival, ...]
    dropped: tuple[DroppedGroup, ...]
    rewards: tuple[float, ...]
    """Known rewards of all groups consumed for their reward's sake, those without variance included: of answers, not
    the differences of corrections nor the weights of demonstrations."""
    again: StepEntry | None = None
    """The step of the dead line that this is."""
    too_old: tuple[int, ...] = ()
    """Weight versions whose tokens are not trained, ascending; see :meth:`Planner.too_old`."""


@dataclass(slots=True)
class Planner:
    """Takes arrivals one by one and gives plans."""

    groups_per_step: int
    max_staleness: int
    accounts: Accounts
    versions: Versions
    max_token_staleness: int | None = None
    needs_variance: bool = True
    """Whether a group teaches by its differences only; with running baselines or values one known reward does, and
    always does where it came as feedback."""
    max_feedback_staleness: int | None = None
    """Of groups whose reward came as feedback, and of corrections; null for no bound."""
    max_rater_share: float = 1.0
    """Largest share of a step's groups that one rater may be part of."""
    drops: list[DroppedGroup] = field(default_factory=list)
    """Since the last plan; the next step's entry names them."""
    waiting: dict[GroupId, Arrival] = field(default_factory=dict)
    """Accepted and not yet used, in the order of arrival."""
    _given_up: list[DroppedGroup] = field(default_factory=list)
    """What a step of the dead line had taken; the next plan names it."""
    _fruitless: int = 0
    _rewards: list[float] = field(default_factory=list)

    def offer(self, arrival: Arrival) -> DropReason | None:
        """Accepts a group, or drops it and says why. What the ledger knows already is passed over."""
        if (arrival.group, arrival.at) in self.accounts.settled:
            return None
        reason = self._judge(arrival)
        if reason is None:
            self.waiting[arrival.group] = arrival
        else:
            self._drop(arrival, reason)
        return reason

    def _judge(self, arrival: Arrival) -> DropReason | None:
        if arrival.group in self.waiting or self.accounts.is_finished(arrival.group):
            return "duplicate"
        if not self.versions.know_all(arrival.versions()):
            return "unknown_version"
        teaches = has_variance if self.needs_variance and arrival.purpose == "train" else is_known
        return None if teaches(arrival.rewards) else "zero_variance"

    def _drop(self, arrival: Arrival, reason: DropReason) -> None:
        self.drops.append(arrival.dropped(reason))
        self.accounts.settle(arrival.group, arrival.at)
        if reason == "duplicate":
            return  # the group itself is accounted for by its first attempt
        self.accounts.finish(arrival.group)
        if reason == "zero_variance":
            self._fruitless += 1
            self._rewards += [reward for reward in arrival.rewards if reward is not None]

    def too_old(self, arrivals: Iterable[Arrival], steps_done: int) -> tuple[int, ...]:
        """The versions among their tokens that are too old to be trained in the next step, each by itself."""
        if self.max_token_staleness is None:
            return ()
        versions = set().union(*(arrival.versions() for arrival in arrivals if arrival.purpose == "train"))
        return tuple(sorted(v for v in versions if self.versions.staleness(v, steps_done) > self.max_token_staleness))

    def is_stale(self, arrival: Arrival, steps_done: int) -> bool:
        """Whether one of its tokens is too old; if they are judged one by one, whether all are.

        Feedback has a bound of its own, and what somebody wrote as the right answer is of no version.
        """
        if arrival.purpose == "demonstration":
            return False
        if arrival.purpose != "train":
            return self._is_over(self.max_feedback_staleness, arrival, steps_done)
        if self.max_token_staleness is None:
            return self._is_over(self.max_staleness, arrival, steps_done)
        return not arrival.can_teach(self.too_old([arrival], steps_done))

    def _is_over(self, bound: int | None, arrival: Arrival, steps_done: int) -> bool:
        return bound is not None and any(self.versions.staleness(v, steps_done) > bound for v in arrival.versions())

    def drop_stale(self, steps_done: int) -> None:
        """Drops what has become too old for the next step."""
        for arrival in list(self.waiting.values()):
            if self.is_stale(arrival, steps_done):
                del self.waiting[arrival.group]
                self._drop(arrival, "stale")

    def is_ready(self) -> bool:
        """Whether the next step can be planned: it is full, or too much came that teaches nothing."""
        if self._fruitless > FRUITLESS_FACTOR * self.groups_per_step:
            return True
        return len(self.waiting) >= self.groups_per_step and not self.is_held_up()

    def is_held_up(self) -> bool:
        """Whether enough groups wait for a step, and too many of them are of the same raters."""
        if self._most_of_one_rater >= self.groups_per_step:
            return False
        return len(self.waiting) >= self.groups_per_step > len(self._choose())

    @property
    def _most_of_one_rater(self) -> int:
        return max(1, floor(self.max_rater_share * self.groups_per_step + _ROUNDING))

    def over_share(self) -> int:
        """Groups that wait although the next step has room: their raters have their share of it."""
        chosen = len(self._choose())
        return len(self.waiting) - chosen if chosen < self.groups_per_step else 0

    def _choose(self) -> list[Arrival]:
        """The groups with the oldest weights, in the order of their arrival, that fit into one step."""
        chosen: list[Arrival] = []
        taken: Counter[str] = Counter()
        most = self._most_of_one_rater
        for arrival in sorted(self.waiting.values(), key=lambda arrival: self.versions.steps[arrival.oldest]):
            if len(chosen) < self.groups_per_step and all(taken[rater] < most for rater in arrival.raters):
                chosen.append(arrival)
                taken.update(arrival.raters)
        return chosen

    def take(self, steps_done: int) -> Plan:
        """The next step: what is not too old for it of :meth:`_choose`."""
        self.drop_stale(steps_done)
        chosen = tuple(self._choose())
        for arrival in chosen:
            del self.waiting[arrival.group]
            self.accounts.finish(arrival.group)
            self.accounts.settle(arrival.group, arrival.at)
        rewards = (*self._rewards, *known_rewards(chosen))
        plan = Plan(chosen, (*self._given_up, *self.drops), rewards, too_old=self.too_old(chosen, steps_done))
        self._given_up, self.drops, self._rewards, self._fruitless = [], [], [], 0
        return plan

    def again(self, entry: StepEntry, arrivals: Sequence[Arrival]) -> Plan:
        """The plan of a step of the dead line: what the ledger says, whatever the weights' age now."""
        self.accounts.redo(entry)
        self.drops = [drop for drop in self.drops if (drop.group, drop.at) not in self.accounts.settled]
        return Plan(tuple(arrivals), entry.dropped, known_rewards(arrivals), entry, entry.too_old)

    def give_up(self, entry: StepEntry) -> None:
        """Drops the groups of a step of the dead line that is not done again; the next plan names them."""
        self.accounts.redo(entry)
        self.drops = [drop for drop in self.drops if (drop.group, drop.at) not in self.accounts.settled]
        trained = [DroppedGroup(group=each.group, at=each.at, reason="quarantined") for each in entry.trained]
        self._given_up += [*entry.dropped, *trained]

    def positions(self, next_offsets: dict[int, int]) -> dict[int, int]:
        """From where a successor has to read each trajectories partition to find what is waiting here."""
        return positions_before(self.waiting.values(), next_offsets)


def positions_before(waiting: Iterable[Arrival], next_offsets: dict[int, int]) -> dict[int, int]:
    """From where each trajectories partition has to be read to find also what is waiting."""
    positions = dict(next_offsets)
    for arrival in waiting:
        partition, offset = arrival.at
        positions[partition] = min(positions.get(partition, offset), offset)
    return positions


def known_rewards(arrivals: Sequence[Arrival]) -> tuple[float, ...]:
    """All rewards of answers that are not null."""
    rated = (arrival for arrival in arrivals if arrival.purpose in RATED)
    return tuple(reward for arrival in rated for reward in arrival.rewards if reward is not None)
