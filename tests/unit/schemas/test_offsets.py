"""The set of finished offsets: exact in memory, never more than finished in Kafka's metadata."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.limits import MAX_OFFSET_METADATA_BYTES
from schemas.offsets import OffsetSet


@given(st.integers(0, 1000), st.lists(st.integers(0, 1500)))
def test_it_holds_exactly_what_was_added_and_everything_below(low, added):
    finished = OffsetSet(low)
    for offset in added:
        finished.add(offset)
    assert {offset for offset in range(1600) if offset in finished} == set(range(low)) | set(added)
    assert finished.low not in finished
    assert finished.canonical() == (finished.low, tuple(sorted(finished.beyond)))


@given(st.integers(0, 10**12), st.sets(st.integers(1, 5000)))
def test_encoding_round_trips(low, beyond):
    finished = OffsetSet(low, {low + offset for offset in beyond})
    assert OffsetSet.decode(low, finished.encode()) == finished


def test_what_does_not_fit_is_left_out_never_invented():
    import random

    beyond = set(random.Random(0).sample(range(1, 100_000), 50_000))
    text = OffsetSet(0, beyond).encode()
    assert len(text) <= MAX_OFFSET_METADATA_BYTES
    kept = OffsetSet.decode(0, text).beyond
    assert kept < beyond
    assert kept == set(sorted(beyond)[: len(kept)])


@pytest.mark.parametrize("text", ["!!!", "YWJj", "AAAA"])
def test_metadata_of_another_program_is_an_error(text):
    with pytest.raises(ValueError, match="not a compressed bitmap"):
        OffsetSet.decode(0, text)


@pytest.mark.timed
def test_a_dense_set_of_a_million_takes_linear_time():
    import time

    finished = OffsetSet(0, set(range(1, 1_000_000)))
    started = time.monotonic()
    assert OffsetSet.decode(0, finished.encode()) == finished
    assert time.monotonic() - started < 20  # shifting one number bit by bit takes minutes
