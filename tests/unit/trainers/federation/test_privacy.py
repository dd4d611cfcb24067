"""The budget against published figures and another implementation, and lengths and noise as they should be."""

from math import erfc, expm1, inf, sqrt

import numpy as np
import pytest

from trainers.federation.privacy import clip_factor, divergence, noise, norm, spent


@pytest.mark.parametrize(
    ("rate", "multiplier", "times", "delta", "epsilon"),
    [
        (1.0, 1.0, 1, 1e-5, 4.752728336819822),
        (1.0, 4.0, 100, 1e-5, 14.176691480042894),
        (256 / 60000, 1.1, 14062, 1e-5, 2.5969811785948815),
        (0.01, 4.0, 10000, 1e-5, 1.0354900660362436),
        (0.1, 1.0, 50, 1e-3, 4.084721402217672),
    ],
)
def test_the_budget_is_that_of_google_s_dp_accounting(rate, multiplier, times, delta, epsilon):
    """Release 0.6.0, its RdpAccountant with the orders of here."""
    assert spent(multiplier, times, delta, rate) == pytest.approx(epsilon, rel=1e-9)


@pytest.mark.parametrize("multiplier", [0.7, 1.0, 3.0])
def test_it_is_no_less_than_the_exact_one_of_a_single_sum(multiplier):
    """Theorem 8 of Balle and Wang 2018, arXiv:1805.06530."""

    def below(x):
        return 0.5 * erfc(-x / sqrt(2))

    epsilon = spent(multiplier, 1, 1e-5)
    half, far = 1 / (2 * multiplier), epsilon * multiplier
    exact = below(half - far) - (expm1(epsilon) + 1) * below(-half - far)
    assert 1e-8 < exact <= 1e-5


def test_choosing_some_costs_less_than_asking_all_and_nobody_nothing():
    costs = [divergence(8, 1.0, rate) for rate in (0.0, 0.01, 0.5, 1.0)]
    assert costs == sorted(costs)
    assert costs[0] == 0.0
    assert costs[3] == 4.0
    assert divergence(8, 1.0, 1 - 1e-12) == pytest.approx(4.0)
    assert spent(1.0, 0, 1e-5) == 0.0
    assert spent(0.0, 1, 1e-5) == inf


def test_an_update_that_is_too_long_is_made_as_long_as_it_may_be():
    row = np.float32([3, 4])
    assert norm(row) == 5.0
    assert clip_factor(5.0, 2.0) == 0.4
    assert clip_factor(5.0, 6.0) == 1.0
    assert clip_factor(5.0, None) == 1.0


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_none_has_no_norm(number):
    row = np.zeros(3_000_000, dtype=np.float32)
    row[2_500_000] = number
    assert not np.isfinite(norm(row))


def test_numbers_beyond_float32_squared_still_have_one():
    assert norm(np.full(4, 3e38, dtype=np.float32)) == pytest.approx(6e38)


def test_noise_is_as_large_as_it_says_and_never_the_same():
    first, second = noise(200_000, 3.0, 0.5), noise(200_000, 3.0, 0.5)
    assert first.std() == pytest.approx(1.5, rel=0.02)
    assert abs(first.mean()) < 0.02
    assert not np.array_equal(first, second)
