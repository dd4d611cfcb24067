"""Forms of the objective on literal arrays, against numpy, and their gradients against finite differences."""

import numpy as np
import pytest
import torch

from trainers.losses.bradley_terry import bradley_terry
from trainers.losses.cispo import cispo
from trainers.losses.gae import gae
from trainers.losses.grpo import grpo
from trainers.losses.gspo import gspo
from trainers.losses.kl import kl
from trainers.losses.reinforce import reinforce
from trainers.losses.sequences import Sequences
from trainers.losses.surrogate import ratio
from trainers.losses.value import value_loss

LOGPROBS = np.array([-1.0, -0.5, -2.0, -0.1, -3.0, -1.0])
ANCHOR = np.array([-1.1, -1.0, -1.0, -0.2, -2.9, -1.4])
ADVANTAGES = np.array([1.0, 1.0, 1.0, -2.0, -2.0, 0.5])
OF = np.array([0, 0, 0, 1, 1, 2])
REFERENCE = np.array([-0.8, -0.7, -2.5, -0.3, -2.0, -1.0])


def tensor(array):
    return torch.tensor(array, dtype=torch.float64)


def by_sequence(values, reduce):
    return np.array([reduce(values[number == OF]) for number in OF])


def sequences():
    return Sequences.count(torch.tensor(OF), 3)


def clipped(rho, low, high):
    return -np.minimum(rho * ADVANTAGES, np.clip(rho, 1 - low, 1 + high) * ADVANTAGES)


def numpy_grpo(logprobs):
    return clipped(np.exp(logprobs - ANCHOR), 0.2, 0.3)


def numpy_gspo(logprobs):
    return clipped(np.exp(by_sequence(logprobs - ANCHOR, np.mean)), 0.02, 0.25)


def numpy_cispo(logprobs):  # the weight is that of LOGPROBS: it has no gradient
    return -np.clip(np.exp(LOGPROBS - ANCHOR), 0.5, 1.4) * ADVANTAGES * logprobs


def numpy_reinforce(logprobs):
    return -ADVANTAGES * logprobs


FORMS = {
    "grpo": (numpy_grpo, lambda x: grpo(x, tensor(ANCHOR), tensor(ADVANTAGES), clip_low=0.2, clip_high=0.3)),
    "gspo": (
        numpy_gspo,
        lambda x: gspo(x, tensor(ANCHOR), tensor(ADVANTAGES), sequences(), clip_low=0.02, clip_high=0.25),
    ),
    "cispo": (numpy_cispo, lambda x: cispo(x, tensor(ANCHOR), tensor(ADVANTAGES), clip_low=0.5, clip_high=0.4)),
    "reinforce": (numpy_reinforce, lambda x: reinforce(x, tensor(ADVANTAGES))),
}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def differences(function, at):
    """The gradient of a sum by central differences."""
    step = 1e-6
    return np.array([
        (function(at + step * unit).sum() - function(at - step * unit).sum()) / (2 * step) for unit in np.eye(len(at))
    ])  # fmt: skip


def test_terms_are_those_of_numpy(form):
    expected, found = form
    np.testing.assert_allclose(found(tensor(LOGPROBS)).terms_R, expected(LOGPROBS), rtol=0, atol=1e-6)


def test_gradient_is_that_of_finite_differences(form):
    expected, found = form
    logprobs = tensor(LOGPROBS).requires_grad_()
    found(logprobs).terms_R.sum().backward()
    np.testing.assert_allclose(logprobs.grad, differences(expected, LOGPROBS), rtol=0, atol=1e-6)


def test_grpo_clips_only_what_would_go_further_and_gives_it_no_gradient():
    logprobs = tensor(LOGPROBS).requires_grad_()
    loss = FORMS["grpo"][1](logprobs)
    loss.terms_R.sum().backward()
    # Ratios 1.11, 1.65, 0.37 (all good), 1.11, 0.90 (bad), 1.49 (good): only what is good and too high is cut.
    assert loss.clipped_R.tolist() == [False, True, False, False, False, True]
    assert (logprobs.grad == 0).tolist() == loss.clipped_R.tolist()


def test_gspo_clips_whole_sequences():
    loss = FORMS["gspo"][1](tensor(LOGPROBS))
    # Geometric means 0.88 and 1.0 (one good, one bad, inside or on the harmless side), 1.49 (good, too high).
    assert loss.clipped_R.tolist() == [False, False, False, False, False, True]


def test_cispo_keeps_a_gradient_where_it_clips():
    logprobs = tensor(LOGPROBS).requires_grad_()
    loss = FORMS["cispo"][1](logprobs)
    loss.terms_R.sum().backward()
    assert loss.clipped_R.tolist() == [False, True, True, False, False, True]
    assert not (logprobs.grad == 0).any()


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo", "reinforce"])
def test_on_policy_gradient_is_minus_the_advantage(name, monkeypatch):
    monkeypatch.setitem(globals(), "ANCHOR", LOGPROBS)
    logprobs = tensor(LOGPROBS).requires_grad_()
    FORMS[name][1](logprobs).terms_R.sum().backward()
    np.testing.assert_allclose(logprobs.grad, -ADVANTAGES, rtol=0, atol=1e-12)


KLS = {
    "k1": lambda d: d,
    "k2": lambda d: d**2 / 2,
    "k3": lambda d: np.exp(-d) + d - 1,
}


@pytest.mark.parametrize("name", KLS)
def test_kl_and_its_gradient_are_those_of_numpy(name):
    def expected(logprobs):
        return KLS[name](logprobs - REFERENCE)

    logprobs = tensor(LOGPROBS).requires_grad_()
    found = kl(logprobs, tensor(REFERENCE), name)
    found.sum().backward()
    np.testing.assert_allclose(found.detach(), expected(LOGPROBS), rtol=0, atol=1e-6)
    np.testing.assert_allclose(logprobs.grad, differences(expected, LOGPROBS), rtol=0, atol=1e-6)


def test_estimators_agree_with_the_divergence_of_a_small_vocabulary():
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    exact = (policy * np.log(policy / reference)).sum()
    for name, tolerance in (("k1", 1e-12), ("k3", 1e-12), ("k2", 1e-3)):
        found = policy @ kl(tensor(np.log(policy)), tensor(np.log(reference)), name).numpy()
        assert found == pytest.approx(exact, abs=tolerance), name


def test_sums_are_those_of_each_sequence():
    values = tensor(LOGPROBS)
    np.testing.assert_allclose(sequences().sum(values), by_sequence(LOGPROBS, np.sum), atol=1e-12)
    np.testing.assert_allclose(sequences().mean(values), by_sequence(LOGPROBS, np.mean), atol=1e-12)
    to_go = [-3.5, -2.5, -2.0, -3.1, -3.0, -1.0]
    np.testing.assert_allclose(sequences().to_go(values), to_go, atol=1e-12)
    assert sequences().tokens_S.tolist() == [3, 2, 1]


def test_token_that_the_other_policy_never_draws_leaves_everything_finite():
    logprobs = torch.tensor([-0.1, -500.0], requires_grad=True)
    loss = grpo(logprobs, torch.tensor([-500.0, -0.1]), torch.tensor([1.0, 1.0]), clip_low=0.2, clip_high=0.2)
    (loss.terms_R * torch.tensor([0.0, 1.0])).sum().backward()
    assert torch.isfinite(loss.terms_R).all()
    assert torch.isfinite(logprobs.grad).all()
    assert torch.isfinite(ratio(torch.tensor([1e4])))


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 1.0), (1.0, 0.0), (0.9, 0.95)])
def test_gae_is_the_discounted_sum_of_surprises(discount, decay):
    rewards, values = np.array([0.1, 0.0, -0.2, 1.0]), np.array([0.3, 0.5, 0.2, 0.7])
    surprises = rewards + discount * np.append(values[1:], 0.0) - values
    expected = [
        sum((discount * decay) ** (later - place) * surprises[later] for later in range(place, 4)) for place in range(4)
    ]
    found = gae(tensor(rewards), tensor(values), discount=discount, decay=decay)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    if (discount, decay) == (1.0, 1.0):
        np.testing.assert_allclose(found, rewards[::-1].cumsum()[::-1] - values, atol=1e-12)


VALUES = np.array([0.3, 0.1, 0.6, -0.5])
VALUES_BEFORE = np.array([0.1, 0.2, 0.3, -0.1])
RETURNS = np.array([0.0, 0.9, 0.2, -2.0])


@pytest.mark.parametrize("clip", [0.0, 0.15, 0.25])
def test_loss_of_values_and_its_gradient_are_those_of_numpy(clip):
    def expected(values):
        inside = VALUES_BEFORE + np.clip(values - VALUES_BEFORE, -clip, clip) if clip else values
        return np.maximum((values - RETURNS) ** 2, (inside - RETURNS) ** 2) / 2

    values = tensor(VALUES).requires_grad_()
    found = value_loss(values, tensor(VALUES_BEFORE), tensor(RETURNS), clip=clip)
    found.sum().backward()
    np.testing.assert_allclose(found.detach(), expected(VALUES), rtol=0, atol=1e-6)
    np.testing.assert_allclose(values.grad, differences(expected, VALUES), rtol=0, atol=1e-6)


def test_value_that_has_gone_far_enough_gains_nothing_by_going_on():
    values = tensor([0.5, -0.5]).requires_grad_()  # both 0.5 from before: one towards its return, one away from it
    value_loss(values, tensor([0.0, 0.0]), tensor([1.0, 1.0]), clip=0.2).sum().backward()
    assert values.grad.tolist() == [0.0, -1.5]


SCORES = np.array([0.3, -0.2, 1.5, 0.1, 0.9, -0.4, 2.0])
REWARDS = np.array([1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 3.0])
GROUPS = np.array([0, 0, 0, 1, 1, 1, 2])
GROUP_WEIGHTS = np.array([0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 1.0])


def numpy_bradley_terry(scores):
    """Over groups the weighed mean over pairs of different rewards; the third group has none."""
    pairs = {0: [(0, 1), (0, 2), (2, 1)], 1: [(3, 5), (4, 5)]}
    means = [np.mean([np.log1p(np.exp(scores[b] - scores[a])) for a, b in pairs[group]]) for group in (0, 1)]
    return 0.5 * means[0] + 0.25 * means[1]


def test_loss_of_pairs_and_its_gradient_are_those_of_numpy():
    scores = tensor(SCORES).requires_grad_()
    pairs = bradley_terry(scores, tensor(REWARDS), torch.tensor(GROUPS), tensor(GROUP_WEIGHTS))
    loss = (pairs.losses_SS * pairs.weights_SS).sum()
    loss.backward()
    assert float(loss) == pytest.approx(numpy_bradley_terry(SCORES), abs=1e-6)
    expected = differences(lambda moved: np.array([numpy_bradley_terry(moved)]), SCORES)
    np.testing.assert_allclose(scores.grad, expected, rtol=0, atol=1e-6)
    assert float(pairs.weights_SS.sum()) == pytest.approx(0.75), "a group counts once, however many pairs it has"
    assert pairs.margins_SS[0, 1] == pytest.approx(0.5)
