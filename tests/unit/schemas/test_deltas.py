"""Deltas rebuild the exact bytes, and anything else is refused."""

import contextlib

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from schemas.deltas import apply, encode
from schemas.errors import RecordError

WORDS = st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=200)


def to_bytes(words):
    return np.array(words, "<u4").tobytes()


@given(
    base=WORDS,
    seed=st.integers(0, 1 << 32),
    share=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    number=st.sampled_from([2, 4]),
)
def test_rebuilt_bytes_are_exact(base, seed, share, number):
    old = np.array(base, "<u4")
    random = np.random.default_rng(seed)
    changed = np.where(random.random(len(old)) < share, random.integers(0, 1 << 32, len(old), np.uint32), old)
    new = changed.astype("<u4").tobytes()
    assert apply(old.tobytes(), encode(old.tobytes(), new, number)) == new


def test_files_of_another_length_have_no_delta():
    with pytest.raises(ValueError, match="one length"):
        encode(to_bytes([1, 2]), to_bytes([1]), 2)


@given(base=WORDS, position=st.integers(0, 1 << 20), bits=st.integers(1, 255))
def test_a_damaged_delta_is_refused_or_gives_a_file_of_the_same_length(base, position, bits):
    """What it gives is then told by its sha256; what must not happen is a crash or another length."""
    old = to_bytes(base)
    delta = bytearray(encode(old, to_bytes([word ^ 1 for word in base]), 2))
    delta[position % len(delta)] ^= bits
    with contextlib.suppress(RecordError):
        assert len(apply(old, bytes(delta))) == len(old)


@given(rubbish=st.binary(max_size=200))
def test_rubbish_is_refused(rubbish):
    with pytest.raises(RecordError):
        apply(to_bytes([1, 2, 3]), rubbish)


def test_a_delta_of_another_file_is_refused():
    delta = encode(to_bytes([1, 2]), to_bytes([1, 3]), 2)
    with pytest.raises(RecordError, match="not a delta of a file of 12 bytes"):
        apply(to_bytes([1, 2, 3]), delta)


def test_a_cut_delta_is_refused():
    delta = encode(to_bytes(range(100)), to_bytes(range(1, 101)), 4)
    with pytest.raises(RecordError):
        apply(to_bytes(range(100)), delta[:-3])


def test_small_steps_of_16_bit_weights_compress():
    """AdamW at 1e-6 moves few bfloat16 numbers, and those by one unit of their last place."""
    torch = pytest.importorskip("torch")
    weights = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    moved = (weights.float() + 1e-6).bfloat16()
    old, new = (tensor.view(torch.uint8).numpy().tobytes() for tensor in (weights, moved))
    assert len(encode(old, new, 2)) < 0.05 * len(new)
