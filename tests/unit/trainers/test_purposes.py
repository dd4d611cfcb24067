"""Which groups may be what they say."""

from dataclasses import replace

import pytest

from schemas.identity import EXCHANGES, FEEDBACK, GroupId
from schemas.trajectories import PURPOSES
from tests.support.samples import group
from trainers.purposes import RATED, find_bad_weight, find_misfit, purposes_of


@pytest.mark.parametrize(
    ("partition", "allowed"),
    [
        (0, ("train", "feedback")),
        (EXCHANGES - 1, ("train", "feedback")),
        (EXCHANGES, ("feedback",)),
        (FEEDBACK - 1, ("feedback",)),
        (FEEDBACK, ("correction", "demonstration")),
        (FEEDBACK + 7, ("correction", "demonstration")),
    ],
)
def test_an_id_says_what_a_group_may_be(partition, allowed):
    assert purposes_of(GroupId(partition, 3)) == allowed
    for purpose in PURPOSES:
        assert (find_misfit(GroupId(partition, 3), [purpose], 1) is None) == (purpose in allowed)
    assert set(RATED) | {"correction", "demonstration"} == set(PURPOSES)


def test_all_rows_have_one_purpose_and_a_demonstration_has_one_row():
    words = "purpose feedback and train, expected train or feedback of every row"
    assert find_misfit(GroupId(0, 3), ["train", "feedback"], 2) == words
    assert find_misfit(GroupId(FEEDBACK, 3), ["demonstration"], 2) == "2 rows of purpose demonstration, expected 1"
    assert find_misfit(GroupId(FEEDBACK, 3), ["correction"], 2) is None, "one judgement may change several rewards"
    assert find_misfit(GroupId(EXCHANGES, 3), ["feedback", "feedback"], 2) is None


@pytest.mark.parametrize(("reward", "bad"), [(None, True), (-1.0, True), (0.0, True), (0.25, False)])
def test_a_demonstration_has_a_weight_above_0(reward, bad):
    (sample,) = group(FEEDBACK, size=1, purpose="demonstration", reward=reward)
    assert (find_bad_weight([sample]) is not None) == bad
    assert find_bad_weight([replace(sample, purpose="correction")]) is None
