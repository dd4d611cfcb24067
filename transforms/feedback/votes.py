"""Which judgements hold: one for each user, answer and channel, and the newest wins.

votes that held, new judgements ──► fold ──► votes that hold, the fate of each judgement
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from schemas.feedback import Channel
from schemas.identity import RolloutId
from schemas.outcomes import Vote
from transforms.feedback.items import Fates, Judged

_Key = tuple[int, str, Channel]


class Folded(NamedTuple):
    """What :func:`fold` gives."""

    votes: tuple[Vote, ...]
    """In the order of sample, user and channel."""
    fates: Fates
    """Of every judgement given: ``used`` stands for those that hold."""


def fold(standing: Iterable[Vote], judgements: Sequence[Judged], group_size: int) -> Folded:
    """Applies judgements to the votes that stand.

    They count in the order in which their users gave them (``at``, in milliseconds, as votes keep it in the log),
    whenever they came; equal moments by the order of the log. Whatever order they are given in, the result is the same.

    Args:
        standing: votes of earlier decisions.
        judgements: of one group.
        group_size: answers of the group; what judges another one is of an unknown rollout.
    """
    votes = {_key(vote): vote for vote in standing}
    by_place, fates = {judged.source.place: judged for judged in judgements}, Fates()
    seen = {(vote.id, vote.at) for vote in votes.values()}
    for judged in sorted(judgements, key=lambda each: (_given_at(each), each.source.place)):
        name = (judged.feedback.feedback_id, _given_at(judged))
        if max(answers_of(judged)) >= group_size:
            fates.give(judged, "unknown")
        elif name in seen:
            fates.give(judged, "duplicate")
        elif judged.feedback.channel is None:
            _retract(votes, judged, by_place, fates)
        else:
            _vote(votes, judged, judged.feedback.channel, by_place, fates)
        seen.add(name)
    return Folded(tuple(votes[key] for key in sorted(votes)), fates)


def answers_of(judged: Judged) -> list[int]:
    """The answers that a judgement says something of, by index: one, or both of a preference."""
    feedback = judged.feedback
    found = [feedback.rollout.index]
    if feedback.kind == "preference":
        found.append(RolloutId.parse(str(feedback.value)).index)
    return found


def _given_at(judged: Judged) -> datetime:
    at = judged.feedback.at
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def _key(vote: Vote) -> _Key:
    return vote.sample, vote.user, vote.channel


def _vote(
    votes: dict[_Key, Vote], judged: Judged, channel: Channel, by_place: dict[tuple[int, int], Judged], fates: Fates
) -> None:
    vote = to_vote(judged, channel)
    before = votes.get(_key(vote))
    if before and before.at > vote.at:
        fates.give(judged, "replaced")
        return
    if before and before.place in by_place:
        fates.give(by_place[before.place], "replaced")
    votes[_key(vote)] = vote
    fates.give(judged, "used")


def _retract(votes: dict[_Key, Vote], judged: Judged, by_place: dict[tuple[int, int], Judged], fates: Fates) -> None:
    sample, user = judged.feedback.rollout.index, judged.feedback.user
    gone = [key for key, vote in votes.items() if key[:2] == (sample, user) and vote.at <= _given_at(judged)]
    for key in gone:
        place = votes.pop(key).place
        if place in by_place:
            fates.give(by_place[place], "retracted")
    fates.give(judged, "retraction" if gone else "no_change")


def to_vote(judged: Judged, channel: Channel) -> Vote:
    """The vote that a judgement is."""
    feedback = judged.feedback
    value = feedback.value
    assert value is not None, "a judgement with a channel has a value"
    return Vote(
        sample=feedback.rollout.index,
        user=feedback.user,
        channel=channel,
        value=float(RolloutId.parse(str(value)).index) if channel == "preference" else value,
        at=_given_at(judged),
        id=feedback.feedback_id,
        place=judged.source.place,
    )
