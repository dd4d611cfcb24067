"""Lengths of answers, drawn from quantiles."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

_AT_ONCE = 4096
QUANTILES = 41
"""How many describe a distribution that was measured."""


def draw_lengths(quantiles: Sequence[float], seed: int) -> Iterator[float]:
    """Lengths in tokens without end: between two quantiles all are equally likely."""
    generator = np.random.default_rng(seed)
    places = np.linspace(0.0, 1.0, len(quantiles))
    while True:
        yield from np.interp(generator.random(_AT_ONCE), places, quantiles).tolist()


def mean_length(quantiles: Sequence[float]) -> float:
    """The mean of what :func:`draw_lengths` draws."""
    middles = [(low + high) / 2 for low, high in pairwise(quantiles)]
    return float(np.mean(middles)) if middles else quantiles[0]


def quantiles_of(lengths: Sequence[float]) -> tuple[float, ...]:
    """Evenly spaced quantiles of lengths that were measured, whose mean is that of the lengths.

    Straight lines between quantiles overrate a long tail: the last one, below the longest answer, is taken down or up
    until the mean is right, as far as the quantile before it allows.
    """
    found = np.quantile(np.asarray(lengths, float), np.linspace(0.0, 1.0, QUANTILES)).tolist()
    excess = mean_length(found) - float(np.mean(lengths))
    found[-1] = max(found[-2], found[-1] - 2 * (QUANTILES - 1) * excess)
    return tuple(round(length, 2) for length in found)
