"""Which judgements hold, and what they come to: literal votes."""

import itertools

import pytest

from schemas.joining import FeedbackConfig
from tests.support.feedback import awaited, judged
from transforms.feedback.rewards import aggregate, blend, rate, ratings_of
from transforms.feedback.votes import fold


def rewards(judgements, *, size=2, samples=None, **changes):
    samples = samples or awaited(size=size).samples()
    votes = fold((), judgements, len(samples)).votes
    return {index: each.reward for index, each in rate(votes, samples, FeedbackConfig(**changes)).items()}


@pytest.mark.parametrize(
    ("how", "ratings", "expected"),
    [
        ("mean", [1.0, -1.0, 0.3], 0.1),
        ("median", [1.0, -1.0, 0.3], 0.3),
        ("median", [1.0, 0.0], 0.5),
        ("majority", [0.1, 0.2, -1.0], 1.0),
        ("majority", [0.1, -0.2], 0.0),
        ("majority", [-0.1, 0.0], -1.0),
    ],
)
def test_several_ratings_become_one(how, ratings, expected):
    assert aggregate(ratings, how) == pytest.approx(expected)


def test_preferences_are_won_less_lost_by_compared():
    one, two, three = (f"demo/0/38/{index}" for index in range(3))
    judgements = [
        judged(1.0, "preference", two, sample=0, user="ann"),
        judged(2.0, "preference", two, sample=2, user="ann"),
        judged(3.0, "preference", one, sample=1, user="bob"),
        judged(4.0, "preference", three, sample=0, user="bob"),
    ]
    assert rewards(judgements, size=3) == pytest.approx({0: (1 - 2) / 3, 1: (2 - 1) / 3, 2: 0.0})


def test_a_rating_and_a_preference_count_alike():
    judgements = [judged(1.0, "score", 0.5), judged(2.0, "preference", "demo/0/38/1", user="bob")]
    assert rewards(judgements) == pytest.approx({0: (0.5 - 1.0) / 2, 1: 1.0})


def test_a_users_own_rating_comes_before_how_alike_their_text_is():
    sample = awaited(response_text="the cat").samples()[0]
    votes = fold((), [judged(1.0, "correction", "the cat"), judged(2.0, value=-1.0)], 2).votes
    assert ratings_of(votes, sample) == {"ann": -1.0}


def test_raters_are_users_and_not_judgements():
    judgements = [judged(1.0), judged(2.0, "correction", "the cat")]
    assert rewards(judgements, min_raters=2) == {}
    assert set(rewards([*judgements, judged(3.0, user="bob")], min_raters=2)) == {0}


def test_a_verifiable_part_is_blended_by_its_share():
    assert blend(-1.0, {}) == -1.0
    assert blend(-1.0, {"verifiable": 1.0, "verifiable_share": 0.25}) == pytest.approx(-0.5)
    samples = awaited(reward_parts={"verifiable": 1.0, "verifiable_share": 0.5}).samples()
    assert rewards([judged(1.0, value=-1.0)], samples=samples) == {0: 0.0}


def test_a_retraction_leaves_what_its_user_says_afterwards():
    order = [judged(1.0, value=-1.0), judged(2.0, "retract", None), judged(3.0, "score", 0.5)]
    for each in itertools.permutations(order):
        folded = fold((), each, 2)
        assert [(vote.value, vote.id) for vote in folded.votes] == [(0.5, "f-3")]
        assert {fate.id: fate.fate for fate in folded.fates.told} == {
            "f-1": "retracted",
            "f-2": "retraction",
            "f-3": "used",
        }


def test_a_retraction_of_nothing_changes_nothing():
    assert fold((), [judged(1.0, "retract", None)], 2).fates.of((1, 1)) == "no_change"


def test_votes_that_stand_are_replaced_and_duplicates_of_them_known():
    standing = fold((), [judged(1.0)], 2).votes
    folded = fold(standing, [judged(5.0, name="f-1", given_s=1.0), judged(6.0, value=-1.0, given_s=0.5)], 2)
    assert [folded.fates.of((1, offset)) for offset in (5, 6)] == ["duplicate", "replaced"]
    assert folded.votes == standing
