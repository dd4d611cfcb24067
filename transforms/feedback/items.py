"""What goes into the feedback pipeline's keyed state, and what comes out.

Judged, Awaited ──► Case, one a group ──► Settled
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from schemas.dead_letters import DeadLetter
from schemas.feedback import Feedback
from schemas.identity import GroupId
from schemas.outcomes import Fate, FeedbackFate, Outcome
from schemas.trace_context import TraceContext
from schemas.trajectories import Sample, decode_again, encode

Place = tuple[int, int]
"""Partition and offset of a record."""


class Source(NamedTuple):
    """A record of the pending or feedback topic."""

    place: Place
    first: int
    """The lowest offset that it accounts for: between it and the place lie no other records."""
    appended_s: float
    """When the broker took it, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """A group that waits for feedback."""

    group: GroupId
    source: Source
    of_groups: int
    """How many groups its record has."""
    size: int
    """How many answers the group has."""
    value: bytes
    """The group alone, as in the log and read before: as objects its tokens would take more."""
    decision: Outcome | None = None
    """What was decided about it before the pipeline was started."""
    trace: TraceContext | None = None
    """The span that those of the group go below; null where nothing is traced."""

    @classmethod
    def of(
        cls,
        source: Source,
        samples: Sequence[Sample],
        *,
        of_groups: int = 1,
        decision: Outcome | None = None,
        trace: TraceContext | None = None,
    ) -> "Awaited":
        """A group as it was read, of a record that may hold others."""
        value, _ = encode(samples)
        return cls(samples[0].group, source, of_groups, len(samples), value, decision, trace)

    def __reduce__(self) -> tuple[Any, ...]:
        """Not what ``dataclass`` generates, which looks its fields up anew each time: every item crosses stages."""
        return Awaited, tuple(getattr(self, name) for name in self.__slots__)

    def samples(self) -> list[Sample]:
        """All of the group, by index."""
        return sorted(decode_again(self.value), key=lambda sample: sample.sample_index)


@dataclass(frozen=True, slots=True)
class Judged:
    """A judgement that may count."""

    source: Source
    feedback: Feedback
    trace: TraceContext | None = None
    """The span in which it was given; null where its sender says of none, or nothing is traced."""

    def __reduce__(self) -> tuple[Any, ...]:
        """As that of :class:`Awaited`."""
        return Judged, (self.source, self.feedback, self.trace)

    @property
    def group(self) -> GroupId:
        """The group of the answer."""
        return self.feedback.group


Item = Awaited | Judged


class Refused(NamedTuple):
    """A judgement that is used for no group. Floods are made of these: it is as small as it can be."""

    source: Source
    fate: Fate
    name: str
    """Its ``feedback_id``; empty if it could not be read."""
    letter: DeadLetter | None = None


@dataclass(frozen=True, slots=True)
class Contribution:
    """A group for the learner."""

    samples: tuple[Sample, ...]
    raters: tuple[str, ...]
    """Pseudonyms of the users whose judgements are part of it."""

    @property
    def id(self) -> GroupId:
        """Its group id."""
        return self.samples[0].group


@dataclass(frozen=True, slots=True)
class Closed:
    """A group whose pending record need not be read again on its account."""

    group: GroupId
    source: Source
    of_groups: int


class Joining(NamedTuple):
    """What the span of a decision is made of."""

    trace: TraceContext
    """The group's."""
    since_s: float
    """When the group was written to pending, in seconds since 1970."""
    judged: tuple[TraceContext, ...]
    """The spans in which the judgements were given that were waiting, as far as they are known."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What is written in one transaction, or left out as a whole."""

    outcome: Outcome | None = None
    """Null if something is only refused, closed or passed over."""
    refused: tuple[Refused, ...] = ()
    """Written as one outcome."""
    contributions: tuple[Contribution, ...] = ()
    letters: tuple[DeadLetter, ...] = ()
    judged: tuple[Source, ...] = ()
    """More feedback records that need not be read again: those of the outcome, or such as had a fate before."""
    closed: tuple[Closed, ...] = ()
    passed: tuple[Source, ...] = ()
    """Pending records of which nothing can be used."""
    joining: Joining | None = None
    """Null where nothing is traced, or about no group."""


@dataclass(slots=True)
class Fates:
    """Collects what became of judgements."""

    known: dict[Place, tuple[Source, FeedbackFate]] = field(default_factory=dict)

    def give(self, judged: Judged, fate: str) -> None:
        """The newest fate holds."""
        told = FeedbackFate.model_validate({"at": judged.source.place, "fate": fate, "id": judged.feedback.feedback_id})
        self.known[judged.source.place] = (judged.source, told)

    def of(self, place: Place) -> str | None:
        """The fate of one record."""
        return self.known[place][1].fate if place in self.known else None

    @property
    def sources(self) -> tuple[Source, ...]:
        """The records."""
        return tuple(source for source, _ in self.known.values())

    @property
    def told(self) -> tuple[FeedbackFate, ...]:
        """For the outcome."""
        return tuple(fate for _, fate in self.known.values())
