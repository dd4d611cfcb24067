"""Loss and advantages on literal arrays, against numpy."""

import numpy as np
import pytest
import torch

from trainers.advantages import has_variance, normalise
from trainers.losses.grpo import grpo

LOGPROBS = np.array([-1.0, -0.5, -2.0, -0.1, -3.0, -1.0])
BEHAVIOUR = np.array([-1.0, -1.0, -1.0, -0.2, -2.9, -1.4])
ADVANTAGES = np.array([1.0, 1.0, -1.0, -2.0, 0.5, -1.0])


def as_tensors(*arrays):
    return [torch.tensor(array, dtype=torch.float64) for array in arrays]


def test_grpo_is_the_clipped_surrogate_of_numpy():
    ratio = np.exp(LOGPROBS - BEHAVIOUR)
    expected = -np.minimum(ratio * ADVANTAGES, np.clip(ratio, 0.8, 1.3) * ADVANTAGES)
    loss = grpo(*as_tensors(LOGPROBS, BEHAVIOUR, ADVANTAGES), clip_low=0.2, clip_high=0.3)
    np.testing.assert_allclose(loss.terms_R.numpy(), expected, rtol=1e-12)


def test_grpo_clips_only_what_would_go_further_and_gives_it_no_gradient():
    logprobs, behaviour, advantages = as_tensors(LOGPROBS, BEHAVIOUR, ADVANTAGES)
    logprobs.requires_grad_()
    loss = grpo(logprobs, behaviour, advantages, clip_low=0.2, clip_high=0.3)
    loss.terms_R.sum().backward()
    # Ratios 1, 1.65, 0.37, 1.11, 0.90, 1.49: the second (good, too high) and third (bad, too low) are cut.
    assert loss.clipped_R.tolist() == [False, True, True, False, False, False]
    assert (logprobs.grad == 0).tolist() == [False, True, True, False, False, False]


def test_on_policy_gradient_is_minus_the_advantage():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    grpo(logprobs, logprobs.detach(), torch.tensor([1.5, -0.5]), clip_low=0.2, clip_high=0.2).terms_R.sum().backward()
    assert logprobs.grad.tolist() == [-1.5, 0.5]


def test_advantages_are_normalised_within_the_known_rewards():
    known = np.array([1.0, 0.0, 0.0, 3.0])
    expected = (known - known.mean()) / (np.sqrt(((known - known.mean()) ** 2).mean()) + 1e-6)
    found = normalise([1.0, None, 0.0, 0.0, 3.0])
    assert found[1] is None
    np.testing.assert_allclose([found[0], *found[2:]], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([1.0, 0.0], True), ([1.0, 1.0], False), ([1.0, None], False), ([None, None], False), ([None, 0.5, 1.0], True)],
)
def test_variance_needs_two_known_rewards_that_differ(rewards, expected):
    assert has_variance(rewards) is expected
