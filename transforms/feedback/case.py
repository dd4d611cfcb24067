"""One group from its first item to its end: the whole logic of the join, without Beam and without Kafka.

    Judged, Awaited ──► take ──► Case ──► wakes_at ──► settle ──► Settled …, Case

    nothing awaited    judgements wait for their rollout, then are ``unknown``
    awaited            judged by enough users: held back for ``settle_s``, then joined; after ``wait_s`` expired
    joined             what comes later is held back too, then goes out as a correction, for ``correction_s``
    expired            what comes later is too late

Every decision is made as of its moment by the clock of the topics (:func:`wakes_at`), from what was appended until
then, whenever that was read and the decision is made: a pipeline that reads on after hours, or again after it was
killed, decides what it would have decided in time. Moments are kept in whole milliseconds, as the topics keep them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain, filterfalse
from typing import Final, NamedTuple

from schemas.dead_letters import DeadLetter
from schemas.identity import GroupId
from schemas.joining import FeedbackConfig
from schemas.outcomes import Outcome, Vote
from schemas.topics import Topics
from schemas.trajectories import Sample
from transforms.feedback.contributions import Demonstrate, correction, demonstration, joined
from transforms.feedback.items import Awaited, Closed, Contribution, Fates, Item, Joining, Judged, Place, Settled
from transforms.feedback.rewards import are_rated, concerns, rate
from transforms.feedback.votes import answers_of, fold

_LEAST_CHANGE: Final = 1e-6
"""Of a reward that is float32 in the log."""
_MOST_WAITING: Final = 1000
"""Judgements of one group that are held back; its state is written anew with each."""
_NEVER: Final = float("inf")
_LEAST_PART: Final = 1e-2
"""Of a millisecond: a float that should be a whole one may be a little less."""
ROUNDING_S: Final = 2e-6
"""What is due within it is due: timers have whole microseconds, and today's seconds a quarter of one as a float."""


class Rules(NamedTuple):
    """What decisions depend on besides the case."""

    topics: Topics
    feedback: FeedbackConfig
    demonstrate: Demonstrate


@dataclass(frozen=True, slots=True)
class Case:
    """What is known of one group; Beam's state for its key."""

    group: GroupId
    awaited: Awaited | None = None
    others: tuple[Awaited, ...] = ()
    """Further records of the same group, which count as duplicates."""
    waiting: tuple[Judged, ...] = ()
    """Judgements without a fate."""
    decision: Outcome | None = None
    """The newest; null before the first."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing has to be remembered."""
        return not self.awaited and not self.waiting


def take(case: Case, item: Item) -> Case:
    """The case with one more item. One that it has already changes nothing."""
    if isinstance(item, Judged):
        known = any(item.source.place == each.source.place for each in case.waiting) or _is_decided(case, item)
        return case if known else replace(case, waiting=(*case.waiting, item))
    if case.awaited is None:
        return replace(case, awaited=item, decision=item.decision or case.decision)
    if item.source.place == case.awaited.source.place:
        return case if item.decision is None else replace(case, decision=item.decision)
    known = any(item.source.place == each.source.place for each in case.others)
    return case if known else replace(case, others=(*case.others, item))


def _is_decided(case: Case, judged: Judged) -> bool:
    if case.decision is None:
        return False
    known = (fate.at for fate in case.decision.feedback), (vote.place for vote in case.decision.votes)
    return judged.source.place in chain(*known)


# ---- when ------------------------------------------------------------------------------------------------


def wakes_at(case: Case, rules: FeedbackConfig) -> float:
    """When the case has to be looked at next, in seconds since 1970; infinity for never."""
    lost_s = min((_lost_at(judged, rules) for judged in _lost(case, rules)), default=_NEVER)
    if case.awaited is None or lost_s < _NEVER:
        return lost_s
    if case.decision is None:
        expires_s = case.awaited.source.appended_s + rules.wait_s
        return min(_held_until(_ripe_at(case, case.awaited, rules), case, rules), expires_s)
    first_s = min((each.source.appended_s for each in case.waiting), default=_NEVER)
    return min(_held_until(first_s, case, rules), closes_at(case.decision, rules))


def _held_until(since_s: float, case: Case, rules: FeedbackConfig) -> float:
    """How long judgements are held back: no longer than until they are too many to be kept."""
    if len(case.waiting) < _MOST_WAITING:
        return since_s + rules.settle_s
    full_s = sorted(each.source.appended_s for each in case.waiting)[_MOST_WAITING - 1]
    return min(since_s + rules.settle_s, max(since_s, full_s))


def closes_at(decision: Outcome, rules: FeedbackConfig) -> float:
    """When feedback on a decided group stops to count; each correction begins the time anew."""
    return decision.decided_at.timestamp() + rules.correction_s


def _lost_at(judged: Judged, rules: FeedbackConfig) -> float:
    return judged.source.appended_s + rules.unknown_after_s


def _lost(case: Case, rules: FeedbackConfig) -> list[Judged]:
    """Judgements whose rollout does not come in time."""
    comes_s = case.awaited.source.appended_s if case.awaited else _NEVER
    return [judged for judged in case.waiting if _lost_at(judged, rules) < comes_s]


def _ripe_at(case: Case, awaited: Awaited, rules: FeedbackConfig) -> float:
    """When enough users had judged one of the answers; infinity if they have not, or took it back in time."""
    ripe_s = _NEVER
    by_time = sorted(case.waiting, key=lambda each: each.source.appended_s)
    for number, judged in enumerate(by_time, start=1):
        moment_s = max(judged.source.appended_s, awaited.source.appended_s)
        if moment_s > ripe_s + rules.settle_s:
            break
        if ripe_s < _NEVER and judged.feedback.channel:
            continue  # only a retraction could change it
        votes = fold((), by_time[:number], awaited.size).votes
        ripe_s = min(ripe_s, moment_s) if are_rated(votes, rules) else _NEVER
    return ripe_s


# ---- what ------------------------------------------------------------------------------------------------


def settle(case: Case, now_s: float, rules: Rules) -> tuple[list[Settled], Case]:
    """Makes the next decision, if it is due; there may be another one after it.

    Args:
        case: of one group.
        now_s: all that was appended until then is in the case, in seconds since 1970.
        rules: of the run.

    Returns:
        What is to be written, in order, and what remains of the case.
    """
    due_s = wakes_at(case, rules.feedback)
    if due_s > now_s + ROUNDING_S:
        return [], case
    if lost := [judged for judged in _lost(case, rules.feedback) if _lost_at(judged, rules.feedback) <= due_s]:
        return [_refused(case.group, lost, due_s)], _without(case, lost)
    if case.awaited is None:
        return [], case
    due, later = _divide(case, due_s)
    settled: list[Settled] = []
    judged = due.waiting
    if case.decision is None:
        settled, due = _decide(due, case.awaited, due_s, rules)
    elif due.waiting:
        settled, due = _decide_again(due, case.awaited, case.decision, due_s, rules)
    settled = [_traced(each, case.awaited, judged) for each in settled]
    if due.decision and closes_at(due.decision, rules.feedback) <= due_s:
        first, *others = later.others or (None,)
        return [*settled, Settled(closed=_closed(due))], replace(later, awaited=first, others=tuple(others))
    return settled, replace(due, others=due.others + later.others, waiting=later.waiting)


def _traced(settled: Settled, awaited: Awaited, judged: Iterable[Judged]) -> Settled:
    if awaited.trace is None:
        return settled
    given = tuple(each.trace for each in judged if each.trace)
    return replace(settled, joining=Joining(awaited.trace, awaited.source.appended_s, given))


def _divide(case: Case, moment_s: float) -> tuple[Case, Case]:
    """What is known of a case at a moment, and what came later."""

    def is_late(item: Item) -> bool:
        return item.source.appended_s > moment_s

    others, waiting = tuple(filter(is_late, case.others)), tuple(filter(is_late, case.waiting))
    if not others and not waiting:
        return case, Case(case.group)
    known = replace(
        case, others=tuple(filterfalse(is_late, case.others)), waiting=tuple(filterfalse(is_late, case.waiting))
    )
    return known, Case(case.group, others=others, waiting=waiting)


def _without(case: Case, judgements: Sequence[Judged]) -> Case:
    return replace(case, waiting=tuple(each for each in case.waiting if each not in judgements))


def _refused(group: GroupId, lost: Sequence[Judged], now_s: float) -> Settled:
    fates = Fates()
    for judged in lost:
        fates.give(judged, "unknown")
    outcome = Outcome(kind="refused", group=group, feedback=fates.told, decided_at=_instant(now_s))
    return Settled(outcome, judged=fates.sources)


def _decide(case: Case, awaited: Awaited, now_s: float, rules: Rules) -> tuple[list[Settled], Case]:
    """The first decision: joined if enough users have judged an answer, else expired."""
    folded = fold((), case.waiting, awaited.size)
    samples = awaited.samples() if folded.votes else []  # most that expire were never judged
    rated = rate(folded.votes, samples, rules.feedback)
    by_place = {judged.source.place: judged for judged in case.waiting}
    votes = tuple(vote for vote in folded.votes if any(concerns(vote, index) for index in rated))
    for vote in folded.votes:
        if vote not in votes:
            folded.fates.give(by_place[vote.place], "too_few")
    used = [by_place[vote.place] for vote in votes]
    contributions = (joined(samples, rated), *_demonstrations(samples, used, rules)) if rated else ()
    outcome = Outcome(
        kind="joined" if rated else "expired",
        group=case.group,
        pending=_pending(case),
        feedback=folded.fates.told,
        contributions=tuple(each.id for each in contributions),
        votes=votes,
        rewards={index: each.reward for index, each in rated.items()},
        decided_at=_instant(now_s),
    )
    letters = () if rated else _expiry(case.group, rules)
    settled = Settled(outcome, contributions=contributions, letters=letters, judged=folded.fates.sources)
    return [settled], replace(case, waiting=(), decision=outcome)


def _demonstrations(samples: Sequence[Sample], used: Iterable[Judged], rules: Rules) -> list[Contribution]:
    if not _demonstrates(rules):
        return []
    texts = [judged for judged in used if judged.feedback.kind == "correction"]
    shown = (
        demonstration(samples[each.feedback.rollout.index], each, rules.feedback, rules.demonstrate) for each in texts
    )
    return [each for each in shown if each]


def _expiry(group: GroupId, rules: Rules) -> tuple[DeadLetter, ...]:
    """A prompt that was admitted ends here; an exchange never was a prompt."""
    if not group.is_prompt:
        return ()
    given = rules.feedback
    detail = f"no answer was judged by feedback.min_raters = {given.min_raters} within feedback.wait_s = {given.wait_s}"
    return (DeadLetter.of("join", "expired", detail, (rules.topics.prompts, *group), b""),)


def _decide_again(
    case: Case, awaited: Awaited, before: Outcome, now_s: float, rules: Rules
) -> tuple[list[Settled], Case]:
    """What comes after the first decision: a correction, if the group was trained and it changes anything."""
    if not before.rewards:
        return _decide_too_late(case, before)
    folded, samples = fold(before.votes, case.waiting, awaited.size), awaited.samples()
    taken = [each for each in case.waiting if folded.fates.of(each.source.place) in ("used", "retraction")]
    used = [each for each in taken if folded.fates.of(each.source.place) == "used"]
    made, rewards = _correct(samples, before, folded.votes, taken, rules)
    _name_corrections(used, before, rewards, folded.fates, rules)
    made += _demonstrations(samples, used, rules)
    outcome = Outcome(
        kind="corrected",
        group=case.group,
        pending=_pending(case),
        feedback=folded.fates.told,
        contributions=tuple(each.id for each in made),
        votes=folded.votes,
        rewards=rewards,
        decided_at=_instant(now_s),
    )
    settled = Settled(outcome, contributions=tuple(made), judged=folded.fates.sources)
    return [settled], replace(case, waiting=(), decision=outcome)


def _correct(
    samples: Sequence[Sample], before: Outcome, votes: Sequence[Vote], taken: Iterable[Judged], rules: Rules
) -> tuple[list[Contribution], dict[int, float]]:
    """The correction that new judgements make, under the name of the newest, and the rewards after it.

    A text that is trained as a demonstration has that name for itself; it moves no reward alone.
    """
    causes = [each for each in taken if each.feedback.kind != "correction" or not _demonstrates(rules)]
    if not causes:
        return [], dict(before.rewards)
    rated = rate(votes, samples, rules.feedback)
    rewards = {index: rated[index].reward if index in rated else 0.0 for index in {*before.rewards, *rated}}
    changes = _changes(before.rewards, rewards)
    if not changes:
        return [], rewards
    cause = max(causes, key=lambda each: (each.source.appended_s, each.source.place))
    raters = {user for index in changes if index in rated for user in rated[index].raters}
    rows = [(samples[index], change) for index, change in changes.items()]
    return [correction(rows, cause, raters | {cause.feedback.user})], rewards


def _demonstrates(rules: Rules) -> bool:
    return rules.feedback.corrections == "demonstration"


def _changes(before: Mapping[int, float], rewards: Mapping[int, float]) -> dict[int, float]:
    """What an answer without a reward so far counted as neither good nor bad."""
    changes = {index: reward - before.get(index, 0.0) for index, reward in sorted(rewards.items())}
    return {index: change for index, change in changes.items() if abs(change) > _LEAST_CHANGE}


def _name_corrections(
    used: Iterable[Judged], before: Outcome, rewards: Mapping[int, float], fates: Fates, rules: Rules
) -> None:
    changes = _changes(before.rewards, rewards)
    for judged in used:
        shown = judged.feedback.kind == "correction" and _demonstrates(rules)
        counts = shown or any(index in changes for index in answers_of(judged))
        fates.give(judged, "corrected" if counts else "no_change")


def _decide_too_late(case: Case, before: Outcome) -> tuple[list[Settled], Case]:
    fates = Fates()
    for judged in case.waiting:
        fates.give(judged, "too_late")
    outcome = before.model_copy(update={"kind": "corrected", "feedback": fates.told})
    return [Settled(outcome, judged=fates.sources)], replace(case, waiting=(), decision=outcome)


def _pending(case: Case) -> tuple[Place, ...]:
    return tuple(each.source.place for each in (case.awaited, *case.others) if each)


def _closed(case: Case) -> tuple[Closed, ...]:
    records = [each for each in (case.awaited, *case.others) if each]
    return tuple(Closed(case.group, each.source, each.of_groups) for each in records)


def _instant(moment_s: float) -> datetime:
    """As it is read again from the log, where instants have milliseconds."""
    return datetime.fromtimestamp(math.floor(moment_s * 1000 + _LEAST_PART) / 1000, UTC)
