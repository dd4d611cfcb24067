"""Digests of buffers: every change shows."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from schemas import digests as module
from schemas.digests import digests


def buffer(words, seed=0):
    numbers = torch.randint(-(1 << 62), 1 << 62, (words,), generator=torch.Generator().manual_seed(seed))
    return numbers.view(torch.uint8)


def reference(words, position_of=lambda index: index + 1):
    """The documented formula in Python's integers."""
    full = (1 << 64) - 1

    def mix(word):
        word ^= word >> 33
        word = word * 0xBF58476D1CE4E5B9 & full
        return word ^ word >> 29

    def weight(index, seed):
        return mix(mix(position_of(index) * 0x9E3779B97F4A7C15 + seed & full)) | 1

    sums = [sum(mix(word) * weight(index, seed) for index, word in enumerate(words)) & full
            for seed in (0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179)]  # fmt: skip
    return f"{sums[0]:016x}{sums[1]:016x}"


def test_it_is_the_documented_sum():
    held = buffer(50)
    words = [word % (1 << 64) for word in held.view(torch.int64).tolist()]
    assert digests(held) == (reference(words),)


@given(bit=st.integers(0, 8 * 8 * 50 - 1))
def test_a_flipped_bit_changes_both_sums(bit):
    held = buffer(50)
    (before,) = digests(held)
    held[bit // 8] ^= 1 << bit % 8
    (after,) = digests(held)
    assert before[:16] != after[:16]
    assert before[16:] != after[16:]


@given(bit=st.integers(0, 63), first=st.integers(0, 49), second=st.integers(0, 49))
def test_two_flips_of_one_bit_do_not_cancel(bit, first, second):
    """They do in a plain sum with weights: the highest bits of two words."""
    held = buffer(50)
    before = digests(held)
    words = held.view(torch.int64)
    mask = (1 << bit) - (1 << 64 if bit == 63 else 0)
    words[first] ^= mask
    words[second] ^= mask
    assert (digests(held) == before) == (first == second)


def test_swapped_words_show():
    held = buffer(50)
    before = digests(held)
    words = held.view(torch.int64)
    words[[3, 40]] = words[[40, 3]]
    assert digests(held) != before


def test_each_block_has_a_digest_of_its_own(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    held = buffer(20)
    before = digests(held)
    assert len(before) == 3
    held[-1] ^= 1
    after = digests(held)
    assert after[:2] == before[:2]
    assert after[2] != before[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_computes_the_same():
    held = buffer(3 * (module.BLOCK_BYTES // 8) // 2)
    assert digests(held.cuda()) == digests(held)
