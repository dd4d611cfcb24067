"""Strategies against numpy by hand, and what is said of those that are wrong."""
# ruff: noqa: N803 - the suffixes are the shapes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from schemas.errors import ConfigError, StateError
from trainers.federation import strategies
from trainers.federation.arithmetic import Part, combine
from trainers.federation.spool import Spool
from trainers.federation.strategies import discount, find, sizes_to_shares, strategy

UPDATES = np.array([[1.0, -2.0, 0.0], [3.0, 2.0, 0.0], [5.0, 100.0, 6.0]])
SHARES = np.array([0.5, 0.25, 0.25])


def call(name, state=None, **arguments):
    chosen = find(name, arguments)
    state = state if state is not None else {key: np.zeros(3) for key in chosen.state}
    return chosen(UPDATES.copy(), SHARES, state), state


def test_the_mean_by_share():
    assert call("fedavg")[0].tolist() == [2.5, 24.5, 1.5]
    assert call("fedbuff", learning_rate=2)[0].tolist() == [5.0, 49.0, 3.0]
    assert call("fedasync", alpha=0.5)[0].tolist() == [1.25, 12.25, 0.75]


def test_momentum_on_the_server():
    step, state = call("fedavgm", momentum=0.5, learning_rate=0.1)
    np.testing.assert_allclose(step, [0.25, 2.45, 0.15])
    step, _ = call("fedavgm", state, momentum=0.5, learning_rate=0.1)
    np.testing.assert_allclose(step, [0.375, 3.675, 0.225])


def test_adam_on_the_server():
    """Two steps of algorithm 2 of arXiv:2003.00295, with v beginning at tau squared."""
    mean, m, v, tau = np.array([2.5, 24.5, 1.5]), 0.0, 0.01**2, 0.01
    state = None
    for _ in range(2):
        m, v = 0.9 * m + 0.1 * mean, 0.99 * v + 0.01 * mean**2
        step, state = call("fedadam", state, learning_rate=0.3, tau=tau)
        np.testing.assert_allclose(step, 0.3 * m / (np.sqrt(v) + tau))


def test_the_middle_of_what_sites_say():
    assert call("median")[0].tolist() == [3.0, 2.0, 0.0]
    assert call("trimmed_mean", trim=0.3)[0].tolist() == [3.0, 2.0, 0.0]
    assert call("trimmed_mean", trim=0.0)[0].tolist() == [3.0, 100 / 3, 2.0]


@given(
    good=hnp.arrays(np.float64, (3, 4), elements=st.floats(-1, 1)),
    bad=hnp.arrays(np.float64, 4, elements=st.floats(-1e6, 1e6)),
    name=st.sampled_from(["median", "trimmed_mean"]),
)
@settings(max_examples=100, deadline=None)
def test_one_bad_site_of_four_cannot_move_it_beyond_what_the_others_say(good, bad, name):
    step = find(name)(np.vstack([good, bad]), np.full(4, 0.25), {})
    assert np.all(step >= good.min(axis=0) - 1e-12)
    assert np.all(step <= good.max(axis=0) + 1e-12)


def test_shares_and_their_discounts():
    assert sizes_to_shares([1, 3]).tolist() == [0.25, 0.75]
    assert sizes_to_shares([0, 0]).tolist() == [0.5, 0.5]
    np.testing.assert_allclose(discount("polynomial", [0, 3], 0.5), [1.0, 0.5])
    np.testing.assert_allclose(discount("hinge", [0, 4, 6], 0.5, 4), [1.0, 1.0, 0.5])
    assert discount("constant", [7]).tolist() == [1.0]


@given(
    rows=hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 300)), elements=st.floats(-9, 9, width=32)),
    name=st.sampled_from(["fedavg", "fedavgm", "fedadam", "trimmed_mean", "median"]),
    chunk_bytes=st.sampled_from([700, 1 << 20]),
)
@settings(max_examples=25, deadline=None)
def test_pieces_give_what_the_whole_gives(rows, name, chunk_bytes):
    spool = Spool(rows.shape[1])
    shares = sizes_to_shares(np.arange(1, len(rows) + 1))
    parts = [Part(spool.put(row), share) for row, share in zip(rows, shares, strict=True)]
    chosen, present = find(name), np.ones(rows.shape[1], dtype=np.float32)
    state = {key: np.full(rows.shape[1], 0.5, dtype=np.float32) for key in chosen.state}
    found, after = combine(chosen, parts, spool, present, state, chunk_bytes)
    whole = {key: value.astype(np.float64) for key, value in state.items()}
    np.testing.assert_allclose(found, present + chosen(rows.astype(np.float64), shares, whole), rtol=1e-5, atol=1e-5)
    for key, value in whole.items():
        np.testing.assert_allclose(after[key], value, rtol=1e-5, atol=1e-6)
    spool.close()


def test_clipped_updates_and_those_from_an_older_version():
    spool = Spool(2)
    update, base = spool.put(np.float32([4, 0])), spool.put(np.float32([1, 1]))
    parts = [Part(update, 1.0, factor=0.5, base=base)]
    found, _ = combine(find("fedasync", {"alpha": 1.0}), parts, spool, np.float32([7, 7]), {}, 1 << 10)
    assert found.tolist() == [3.0, 1.0], "base + clipped update, wherever the present version is"


def test_a_strategy_that_gives_no_numbers_publishes_nothing():
    spool = Spool(1)
    part = Part(spool.put(np.float32([3e38])), 1.0)
    with pytest.raises(StateError, match="strategy fedavg made numbers that are not finite"):
        combine(find("fedavg", {"learning_rate": 1e9}), [part], spool, np.float32([0]), {}, 1 << 10)


@pytest.fixture
def registered(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(strategies, "_STRATEGIES", dict(strategies._STRATEGIES))


@pytest.mark.usefixtures("registered")
def test_wrong_strategies_are_told_so():
    def odd(updates_SN, numbers):
        return updates_SN[0]

    def without(updates_SN, *, rate):
        return updates_SN[0]

    def fedavg(updates_SN):
        return updates_SN[0]

    def whole(updates_SN):
        return updates_SN

    with pytest.raises(ConfigError, match="takes numbers, expected some of updates_SN, shares_S and state"):
        strategy()(odd)
    with pytest.raises(ConfigError, match="rate needs a default"):
        strategy()(without)
    with pytest.raises(ConfigError, match="'fedavg' is registered already"):
        strategy()(fedavg)
    strategy()(whole)
    with pytest.raises(ConfigError, match=r"returned \(3, 3\) for updates of \(3, 3\), expected \(3,\)"):
        find("whole")(UPDATES, SHARES, {})


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("fedavgg", {}, "no strategy 'fedavgg'; did you mean fedavg?"),
        ("fedavg", {"lerning_rate": 1}, "has no argument 'lerning_rate'; did you mean learning_rate?"),
        ("fedavg", {"learning_rate": "fast"}, "learning_rate = 'fast' of fedavg, expected a float"),
        ("fedavg", {"learning_rate": True}, "expected a float"),
    ],
)
def test_what_is_misspelt_is_named(name, arguments, said):
    with pytest.raises(ConfigError) as caught:
        find(name, arguments)
    assert said in str(caught.value)
