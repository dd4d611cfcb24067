"""What became of judgements, as the topics tell it, in a bounded memory.

    judging ───────────► received
    {run}.outcomes ────► fate of each judgement, what it contributed
    {run}.ledger ──────► step and version that trained it, or why it was dropped
    {run}.weights ─────► the newest version

Everything is forgotten in the order in which it came. All methods may be called from several threads.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Generic, Literal, NamedTuple, TypeVar

from pydantic import BaseModel

from pipelines.gateway import metrics
from pipelines.gateway.judging import Accepted
from schemas.identity import FEEDBACK, GroupId, RolloutId
from schemas.joining import FeedbackConfig
from schemas.ledger import LedgerEntry, StartEntry, StepEntry
from schemas.outcomes import Fate, Outcome, Vote
from schemas.records import Instant, now
from schemas.weights import WeightVersion

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_MOST: Final = 20_000
"""Judged answers, fates, decisions and trained groups that are remembered, each; some tens of MB."""
_MOST_AN_ANSWER: Final = 100
"""Judgements of one answer that are remembered."""

State = Literal["received", "waiting", "used", "replaced", "withdrawn", "refused"]
_STATES: Final[dict[Fate, State]] = {
    "used": "used", "corrected": "used", "replaced": "replaced", "retracted": "withdrawn", "retraction": "withdrawn",
}  # fmt: skip
_REASONS: Final[dict[Fate, str]] = {
    "replaced": "a newer judgement of yours took its place",
    "duplicate": "it was sent twice",
    "retracted": "you withdrew it before it was used",
    "retraction": "it withdrew what you had said before",
    "no_change": "it came after the answer was trained and changes nothing",
    "too_few": "too few people judged this answer",
    "too_late": "it came too late",
    "unknown": "there is no such answer",
    "held_out": "it watches over the judgements of others and is not trained",
    "bad_receipt": "it does not prove that you saw the answer",
    "expired_receipt": "its receipt had expired",
    "rate_limited": "you sent too many",
    "malformed": "it could not be read",
}


class Effect(BaseModel):
    """What a judgement contributed to training, and what became of that."""

    what: Literal["answer", "difference"]
    """The answer with its reward; or what came later: a change of it, or a corrected text."""
    step: int | None = None
    """The optimizer step that trained it; null if none did yet."""
    version: int | None = None
    """The weight version that the step produced."""
    dropped: str | None = None
    """Why the learner left it out; null if it did not."""


class Judgement(BaseModel):
    """One of the user's judgements of an answer."""

    feedback_id: str
    kind: str
    """As in the record; of a judgement that another gateway took its channel."""
    at: Instant
    state: State
    fate: Fate | None = None
    """As the feedback pipeline told it; null if it has not yet."""
    reason: str | None = None
    """In words, unless it is used or still waits."""
    decided_by: Instant | None = None
    """When the pipeline is expected to decide; null once it has."""
    effects: tuple[Effect, ...] = ()


class Report(BaseModel):
    """What is known of one answer and of one user's judgements of it."""

    rollout_id: str
    state: Literal["open", "joined", "expired"]
    """``open``: nothing was decided yet, or it was forgotten."""
    reward: float | None = None
    """What the answer was worth in training; null if it was not rated."""
    judgements: tuple[Judgement, ...] = ()
    """The newest last."""
    newest_version: int | None = None
    """Of the weights that were announced."""


class _Lately(OrderedDict[K, V], Generic[K, V]):
    """A dictionary that forgets its oldest key."""

    def put(self, key: K, value: V) -> V:
        self[key] = value
        if len(self) > _MOST:
            self.popitem(last=False)
        return value


@dataclass(slots=True)
class _Answer:
    """A group, as far as outcomes tell of it."""

    state: Literal["open", "joined", "expired"] = "open"
    rewards: dict[int, float] = field(default_factory=dict)
    votes: tuple[Vote, ...] = ()


class _Decided(NamedTuple):
    fate: Fate
    contributions: tuple[GroupId, ...]
    """Of the decision, so of all judgements in it."""


@dataclass(slots=True)
class _Trained:
    step: int
    version: int | None
    dropped: str | None = None


class Fates:
    """The memory.

    Args:
        config: says how long the pipeline waits before it decides.
    """

    def __init__(self, config: FeedbackConfig) -> None:
        self._settle = timedelta(seconds=config.settle_s)
        self._lock = threading.Lock()
        self._received: _Lately[str, list[Accepted]] = _Lately()
        self._fates: _Lately[tuple[int, int], _Decided] = _Lately()
        self._answers: _Lately[GroupId, _Answer] = _Lately()
        self._trained: _Lately[GroupId, _Trained] = _Lately()
        self._newest: WeightVersion | None = None

    # ---- what is told -------------------------------------------------------------------------------

    def receive(self, accepted: Accepted) -> None:
        """A judgement was acknowledged here."""
        with self._lock:
            name = accepted.feedback.rollout_id
            kept = self._received.get(name)
            if kept is None:
                kept = self._received.put(name, [])
            kept.append(accepted)
            del kept[:-_MOST_AN_ANSWER]

    def apply_outcome(self, outcome: Outcome) -> None:
        """The feedback pipeline decided something."""
        with self._lock:
            for each in outcome.feedback:
                self._fates.put(each.at, _Decided(each.fate, outcome.contributions))
            if outcome.group is not None and outcome.kind != "refused":
                self._apply_decision(outcome.group, outcome)

    def _apply_decision(self, group: GroupId, outcome: Outcome) -> None:
        answer = self._answers.get(group) or self._answers.put(group, _Answer())
        answer.state = "expired" if outcome.kind == "expired" else "joined"
        answer.rewards.update(outcome.rewards)
        answer.votes = outcome.votes[-_MOST_AN_ANSWER:]

    def apply_entry(self, entry: LedgerEntry) -> None:
        """The learner did something; what a new start does not continue from never happened."""
        with self._lock:
            if isinstance(entry, StartEntry):
                kept = entry.continues.step if entry.continues else 0
                for group in [each for each, trained in self._trained.items() if trained.step > kept]:
                    del self._trained[group]
            elif isinstance(entry, StepEntry):
                for done in entry.trained:
                    self._trained.put(done.group, _Trained(entry.step, entry.version))
                for left in entry.dropped:
                    if left.reason != "duplicate":
                        self._trained.put(left.group, _Trained(entry.step, None, left.reason))

    def apply_weights(self, announced: WeightVersion) -> None:
        """A version was announced."""
        with self._lock:
            if self._newest is None or announced.supersedes(self._newest):
                self._newest = announced
                metrics.VERSION.set(announced.version)

    # ---- what is asked ------------------------------------------------------------------------------

    @property
    def newest_version(self) -> int | None:
        """Of the weights that were announced; null before the first."""
        newest = self._newest
        return newest.version if newest else None

    def report(self, rollout: RolloutId, user: str) -> Report:
        """What is known of an answer and of one user's judgements of it."""
        with self._lock:
            answer = self._answers.get(rollout.group) or _Answer()
            return Report(
                rollout_id=str(rollout),
                state=answer.state,
                reward=answer.rewards.get(rollout.index),
                judgements=tuple(self._judgements(rollout, user, answer)),
                newest_version=self.newest_version,
            )

    def _judgements(self, rollout: RolloutId, user: str, answer: _Answer) -> Iterator[Judgement]:
        """Those that came here, and those that another gateway or producer took and that hold."""
        here = [each for each in self._received.get(str(rollout), ()) if each.feedback.user == user]
        known = {accepted.place for accepted in here}
        for vote in answer.votes:
            if vote.user == user and vote.sample == rollout.index and vote.place not in known:
                decided = self._fates.get(vote.place, _Decided("used", (rollout.group,)))
                yield self._judge(_Told(vote.id, vote.channel, vote.at, vote.place), decided, rollout.group)
        for accepted in here:
            given = accepted.feedback
            told = _Told(given.feedback_id, given.kind, given.at, accepted.place)
            yield self._judge(told, self._fates.get(accepted.place), rollout.group)

    def _judge(self, told: "_Told", decided: _Decided | None, group: GroupId) -> Judgement:
        if decided is None:
            decided_by = told.at + self._settle
            state: State = "received" if now() < decided_by else "waiting"
            return Judgement(feedback_id=told.id, kind=told.kind, at=told.at, state=state, decided_by=decided_by)
        state = _STATES.get(decided.fate, "refused")
        effects = tuple(self._effects(told.place, decided, group)) if state == "used" else ()
        return Judgement(
            feedback_id=told.id, kind=told.kind, at=told.at, state=state, fate=decided.fate,
            reason=_REASONS.get(decided.fate), effects=effects,
        )  # fmt: skip

    def _effects(self, place: tuple[int, int], decided: _Decided, group: GroupId) -> Iterator[Effect]:
        """Of a difference that several judgements made, the group has the name of one of them."""
        own = GroupId(FEEDBACK + place[0], place[1])
        if group in decided.contributions:
            yield self._effect("answer", group)
        later = [each for each in decided.contributions if each.partition >= FEEDBACK]
        for each in [own] if own in later else later if decided.fate == "corrected" else []:
            yield self._effect("difference", each)

    def _effect(self, what: Literal["answer", "difference"], group: GroupId) -> Effect:
        trained = self._trained.get(group)
        if trained is None:
            return Effect(what=what)
        if trained.dropped:
            return Effect(what=what, dropped=trained.dropped)
        return Effect(what=what, step=trained.step, version=trained.version)


class _Told(NamedTuple):
    """What a person said, without its value."""

    id: str
    kind: str
    at: datetime
    place: tuple[int, int]
