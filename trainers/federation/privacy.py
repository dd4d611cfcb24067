"""Differential privacy of sites: the length of an update is bounded, noise is added to the sum, and the budget counted.

    update ──clip──► norm ≤ C ──sum + N(0, (z C)²)──► merged         z = noise_multiplier
    each noisy sum costs Rényi divergence of every order ──add up──► epsilon at delta

Who looks decides what it costs. Whoever sees which sites took part in which round, as all readers of ``F.rounds`` do,
learns what the Gaussian mechanism gives away in each of them: :func:`spent` of the site that took part most often.
Whoever sees only the weights does not know whom a random choice has met, which costs less: the subsampled mechanism.

Sources: McMahan et al. 2018, arXiv:1710.06963 (clipping and noise for whole participants); Mironov 2017,
arXiv:1702.07476 (Rényi differential privacy); Mironov, Talwar, Zhang 2019, arXiv:1908.10530 (the subsampled Gaussian,
for whole orders); Canonne, Kamath, Steinke 2020, arXiv:2004.00010, proposition 12 (from there to epsilon).
Noise of floating-point numbers is not exactly Gaussian (Mironov 2012); nothing is done about that.
"""

from functools import lru_cache
from math import comb, exp, inf, log, log1p, sqrt
from typing import Final

import numpy as np

from trainers.federation.layout import Row

ORDERS: Final = (*range(2, 64), *range(64, 512, 16), *range(512, 4097, 256))
"""Whole orders, for which the subsampled divergence has a closed form."""

_PART: Final = 1 << 16
"""Numbers that a processor's cache holds in float64."""


def norm(row: Row) -> float:
    """Euclidean, summed in float64: not finite if one number is not, or if they are beyond any sense."""
    with np.errstate(over="ignore", invalid="ignore"):
        return sqrt(sum(_squares(row[begin : begin + _PART]) for begin in range(0, len(row), _PART)))


def _squares(part: Row) -> float:
    wide = part.astype(np.float64)
    return float(np.einsum("i,i->", wide, wide))  # BLAS would have threads wait for each other over so little


def clip_factor(length: float, clip_norm: float | None) -> float:
    """What an update of that length is multiplied by."""
    return 1.0 if clip_norm is None or length <= clip_norm else clip_norm / length


def noise(size: int, noise_multiplier: float, clip_norm: float) -> Row:
    """A row of Gaussian numbers of deviation noise_multiplier × clip_norm, seeded by the operating system."""
    generator = np.random.default_rng()
    row: Row = generator.standard_normal(size, dtype=np.float32) * np.float32(noise_multiplier * clip_norm)
    return row


@lru_cache(maxsize=1 << 14)
def divergence(order: int, noise_multiplier: float, rate: float = 1.0) -> float:
    """Rényi divergence of one noisy sum of which each site is a part with probability ``rate``.

    Args:
        order: 2 or more.
        noise_multiplier: deviation of the noise over the longest update.
        rate: 1 where everybody knows who took part.
    """
    if noise_multiplier <= 0:
        return inf
    if rate >= 1:
        return order / (2 * noise_multiplier**2)
    if rate <= 0:
        return 0.0
    terms = [
        log(comb(order, k)) + k * log(rate) + (order - k) * log1p(-rate) + (k * k - k) / (2 * noise_multiplier**2)
        for k in range(order + 1)
    ]
    return max(0.0, _log_sum(terms) / (order - 1))


def _log_sum(terms: list[float]) -> float:
    largest = max(terms)
    summed = sum(exp(term - largest) for term in terms)
    return largest + log(summed)


def spent(noise_multiplier: float, times: int, delta: float, rate: float = 1.0) -> float:
    """Epsilon of so many noisy sums, at delta; infinite without noise.

    Args:
        noise_multiplier: of each.
        times: how many a site took part in, or, with a rate below 1, could have been chosen for.
        delta: between 0 and 1.
        rate: with which it was chosen, independently of the others.
    """
    if not times:
        return 0.0
    found = (
        times * divergence(order, noise_multiplier, rate) + log1p(-1 / order) - (log(delta) + log(order)) / (order - 1)
        for order in ORDERS
    )
    least: float = min(found)
    return max(0.0, least)
