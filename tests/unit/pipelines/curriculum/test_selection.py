"""Which prompt is drawn: the weights of literal results, and many seeded draws of them."""

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.curriculum.selection import Deck, signal
from pipelines.curriculum.settings import Selection
from tests.support.curriculum import make_pool

DRAWS = 20_000
LITERAL = [(1, 13), (1, 9), (1, 4), (1, 17), (0, 11), (0, 7)]
"""The first draws of two pools of thirty with seed 0: another version or machine draws the same."""
ALIKE = Selection(power=0)


def draws(pools, selection, count=DRAWS, *, seed=0, era=0):
    """Each from a deck of its own, as if its prompt had been answered before the next."""
    return [Deck(pools, selection, era).draw(seed, number) for number in range(1, count + 1)]


def test_what_can_be_learned_is_the_mean_of_4p_1_minus_p_under_jeffreys_prior():
    passes, answers = np.array([0.0, 4.0, 0.0, 8.0, 1.0]), np.array([0.0, 8.0, 8.0, 8.0, 8.0])
    # 4ab / ((a+b)(a+b+1)) of Beta(a, b): (.5, .5), (4.5, 4.5), (.5, 8.5), (8.5, .5), (1.5, 7.5)
    expected = [4 * 0.25 / 2, 4 * 20.25 / 90, 4 * 4.25 / 90, 4 * 4.25 / 90, 4 * 11.25 / 90]
    assert signal(passes, answers) == pytest.approx(expected)
    assert signal(np.array([500.0]), np.array([1000.0])) == pytest.approx([1.0], abs=1e-3)


def test_the_prior_is_what_an_integral_over_rates_says():
    rates = (np.arange(200_000) + 0.5) / 200_000
    density = rates**1.5 * (1 - rates) ** 5.5  # 2 of 8 passed
    mean = (4 * rates * (1 - rates) * density).sum() / density.sum()
    assert signal(np.array([2.0]), np.array([8.0])) == pytest.approx([mean], rel=1e-6)


def test_prompts_are_drawn_by_their_weights():
    pool = make_pool(size=4)
    for row, passed in ((1, 4), (2, 0), (3, 8)):
        pool.learn(row, passed, 8, 0)
    weights = pool.weights(Selection(floor=0.02, power=2), 0)
    assert weights == pytest.approx([0.27, 0.83, 0.02 + (17 / 90) ** 2, 0.02 + (17 / 90) ** 2])
    counted = Counter(row for _, row in draws([pool], Selection(floor=0.02, power=2)))
    shares = weights / weights.sum()
    for row in range(4):  # five standard deviations of a share
        assert counted[row] / DRAWS == pytest.approx(shares[row], abs=5 * (0.25 / DRAWS) ** 0.5)


def test_tasks_are_drawn_by_their_weights_whatever_their_sizes_and_results():
    pools = [make_pool("a", 50, 2.0), make_pool("b", 1, 1.0), make_pool("c", 7, 1.0)]
    pools[0].learn(0, 8, 8, 0)
    counted = Counter(pool for pool, _ in draws(pools, Selection()))
    for at, share in enumerate((0.5, 0.25, 0.25)):
        assert counted[at] / DRAWS == pytest.approx(share, abs=5 * (0.25 / DRAWS) ** 0.5)


def test_a_prompt_is_not_drawn_while_it_is_in_flight_or_when_it_was_given_up():
    pool = make_pool(size=3)
    pool.in_flight[0] = pool.given_up[1] = True
    assert {row for _, row in draws([pool], Selection(), 200)} == {2}
    pool.in_flight[2] = True
    assert Deck([pool], Selection(), 0).draw(0, 1) is None


def test_a_deck_gives_each_prompt_once_and_leaves_out_tasks_that_are_used_up():
    pools = [make_pool("a", 2, 100.0), make_pool("b", 3, 0.01)]
    deck = Deck(pools, Selection(), 0)
    drawn = [deck.draw(0, number) for number in range(1, 6)]
    assert sorted(drawn) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert [pool for pool, _ in drawn[:2]] == [0, 0]
    assert deck.draw(0, 6) is None
    assert not pools[0].in_flight.any(), "the pools are the caller's"


def test_a_draw_depends_on_seed_and_number_alone():
    pools = [make_pool("a", 30), make_pool("b", 30)]
    assert draws(pools, ALIKE, 12)[:6] == draws(pools, ALIKE, 6)
    assert draws(pools, ALIKE, 6) == LITERAL
    assert draws(pools, ALIKE, 6, seed=1) != LITERAL


def test_what_was_seen_counts_half_after_each_half_life_until_the_prompt_is_as_if_unseen():
    pool, selection = make_pool(size=2), Selection(floor=0.02, power=2, half_life=10)
    pool.learn(0, 0, 8, 3)
    weight = [float(pool.weights(selection, era)[0]) for era in (3, 4, 5, 30)]
    # Beta(.5, 8.5), Beta(.5, 4.5), Beta(.5, 2.5), and at last the prior
    expected = [0.02 + each**2 for each in (4 * 4.25 / 90, 4 * 2.25 / 30, 4 * 1.25 / 12, 0.5)]
    assert weight == pytest.approx(expected)
    assert weight == sorted(weight)
    assert pool.pass_rate(0) == 0.0
    assert pool.pass_rate(1) is None


def test_new_results_outweigh_old_ones():
    pool = make_pool(size=1)
    pool.learn(0, 0, 8, 0)
    pool.learn(0, 8, 8, 2)
    assert (pool.passes[0], pool.answers[0]) == (8.0, 10.0)


def test_results_in_any_order_leave_the_same_bits():
    selection = Selection(reward_low=-1, reward_high=2)
    results = [([0.1, 0.7, -0.3], 0), ([1.3, 0.2], 5), ([2.0, -1.0, 0.33, 0.4], 2), ([0.9], 5)]
    pools = [make_pool(size=1) for _ in range(2)]
    for pool, given in zip(pools, (results, results[::-1]), strict=True):
        for rewards, era in given:
            pool.learn(0, selection.passed(rewards), len(rewards), era)
    assert pools[0].passes[0] == pools[1].passes[0]
    assert pools[0].answers[0] == pools[1].answers[0] == 3 / 32 + 2 + 4 / 8 + 1


def test_rewards_between_the_bounds_are_parts_of_a_success():
    assert Selection().passed([0.0, 1.0, 0.25, 7.0, -7.0]) == 2.25
    assert Selection(reward_low=-1, reward_high=1).passed([-1.0, 0.0, 1.0]) == 1.5


@pytest.mark.parametrize("wrong", [{"floor": 0}, {"half_life": 0}, {"power": -1}, {"reward_low": 1.0}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValidationError):
        Selection(**wrong)
