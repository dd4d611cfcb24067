"""What topics ask of the brokers."""

import pytest

from schemas.topics import MIN_IN_SYNC, Topics, copies_that_agree


@pytest.mark.parametrize(("replication", "agree"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)])
def test_two_copies_have_to_agree_where_one_may_go(replication, agree):
    assert copies_that_agree(replication) == agree


def test_topics_of_three_copies_are_on_two_before_a_record_is_acknowledged():
    assert {spec.settings[MIN_IN_SYNC] for spec in Topics("demo").specs(2, 3)} == {"2"}
    assert not any(MIN_IN_SYNC in spec.settings for spec in Topics("demo").specs(2))
