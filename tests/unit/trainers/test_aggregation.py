"""Weights of tokens, as literal numbers."""

import numpy as np
import pytest

from trainers.aggregation import weigh
from trainers.batch import Example

TERMS = ([1.0, 2.0, 6.0], [4.0], [-1.0, 5.0])
"""Of the trained tokens of three sequences."""
MASKS = ((True, True, True), (False, True, False), (True, True))


def examples():
    return [
        Example((7,) * (1 + len(mask)), 1, (-1.0,) * len(mask), mask, advantage=1.0)
        for mask in MASKS
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", np.mean(np.concatenate(TERMS))),
        ("sequence_mean", np.mean([np.mean(terms) for terms in TERMS])),
        ("constant_length", np.mean([np.sum(terms) / 16 for terms in TERMS])),
    ],
)
def test_weighted_sum_is_the_aggregate_of_numpy(aggregation, expected):
    weighed = weigh(examples(), aggregation, length_tokens=16)
    assert sum(one.weight * sum(terms) for one, terms in zip(weighed, TERMS, strict=True)) == pytest.approx(expected)


def test_nothing_weighs_nothing():
    assert weigh([], "token_mean", 16) == []
