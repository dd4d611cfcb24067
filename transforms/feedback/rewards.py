"""Rewards from votes.

    ratings of users, or how alike their text is ──► mean, median or majority ──┐
    preferences ──► (won - lost) / compared ────────────────────────────────────┴──► mean ──► blend ──► reward

All in [-1, 1], but the verifiable part of a blend, which is as its function gives it.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from schemas.joining import FeedbackConfig
from schemas.outcomes import Vote
from schemas.prompts import VERIFIABLE, VERIFIABLE_SHARE
from schemas.trajectories import Sample
from transforms.rewards.chrf import similarity


class Rated(NamedTuple):
    """What the votes on one answer come to."""

    reward: float
    parts: dict[str, float]
    raters: tuple[str, ...]
    """Users, sorted."""


def rate(votes: Sequence[Vote], samples: Sequence[Sample], rules: FeedbackConfig) -> dict[int, Rated]:
    """Rewards of the answers that enough users have judged, by index.

    Args:
        votes: of one group, those that hold.
        samples: of the group, by index.
        rules: how they are taken together.
    """
    return {
        sample.sample_index: rated
        for sample in samples
        if len(raters_of(votes, sample.sample_index)) >= rules.min_raters and (rated := _rate(votes, sample, rules))
    }


def are_rated(votes: Sequence[Vote], rules: FeedbackConfig) -> bool:
    """Whether enough users have judged one of the answers, so that :func:`rate` will find any."""
    judged = {index for vote in votes for index in answers_of(vote)}
    return any(len(raters_of(votes, index)) >= rules.min_raters for index in judged)


def answers_of(vote: Vote) -> tuple[int, ...]:
    """The answers that a vote says something of: one, or both of a preference."""
    return (vote.sample, int(vote.value)) if vote.channel == "preference" else (vote.sample,)


def raters_of(votes: Iterable[Vote], index: int) -> tuple[str, ...]:
    """The users who have judged an answer, alone or against another."""
    return tuple(sorted({vote.user for vote in votes if concerns(vote, index)}))


def concerns(vote: Vote, index: int) -> bool:
    """Whether a vote says something of an answer."""
    return index in answers_of(vote)


def _rate(votes: Sequence[Vote], sample: Sample, rules: FeedbackConfig) -> Rated | None:
    index = sample.sample_index
    parts: dict[str, float] = {}
    if ratings := ratings_of(votes, sample):
        parts["rating"] = aggregate(list(ratings.values()), rules.aggregate)
    if compared := [vote for vote in votes if vote.channel == "preference" and concerns(vote, index)]:
        won = sum(vote.value == index for vote in compared)
        parts["preference"] = (2 * won - len(compared)) / len(compared)
    if not parts:
        return None
    spoken = statistics.fmean(parts.values())
    return Rated(blend(spoken, sample.reward_parts), parts | sample.reward_parts, raters_of(votes, index))


def ratings_of(votes: Iterable[Vote], sample: Sample) -> dict[str, float]:
    """Each user's rating of an answer: what they gave, else how alike the answer is to the text they gave."""
    own = [vote for vote in votes if vote.sample == sample.sample_index]
    alike = {
        vote.user: 2 * similarity(sample.response_text, str(vote.value)) - 1
        for vote in own
        if vote.channel == "correction"
    }
    return alike | {vote.user: float(vote.value) for vote in own if vote.channel == "rating"}


def aggregate(ratings: Sequence[float], how: str) -> float:
    """Several users' ratings as one: ``mean``, ``median``, or ``majority`` of their signs."""
    if how == "mean":
        return statistics.fmean(ratings)
    if how == "median":
        return float(statistics.median(ratings))
    balance = sum((rating > 0) - (rating < 0) for rating in ratings)
    return float((balance > 0) - (balance < 0))


def blend(spoken: float, parts: Mapping[str, float]) -> float:
    """People's part of a reward and the verifiable one, if the row has that."""
    share = parts.get(VERIFIABLE_SHARE, 0.0) if VERIFIABLE in parts else 0.0
    return (1 - share) * spoken + share * parts.get(VERIFIABLE, 0.0)
