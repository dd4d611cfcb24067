"""The whole objective, against one written in numpy, and its gradient against finite differences."""

from itertools import product

import numpy as np
import pytest
import torch

from schemas.objectives import ObjectiveConfig
from trainers.objective import Objective
from trainers.packing import Pack

LOGPROBS = np.array([-1.0, -0.5, -2.0, -0.1, -3.0, -1.0])
PROXIMAL = np.array([-1.1, -0.6, -1.6, -0.2, -2.7, -1.1])
BEHAVIOUR = np.array([-1.3, -1.8, -1.5, -0.3, -2.9, -1.9])
REFERENCE = np.array([-0.8, -0.7, -2.5, -0.3, -2.0, -1.0])
ENTROPY = np.array([1.0, 2.0, 0.5, 0.7, 0.1, 0.3])
ADVANTAGES = np.array([1.0, 1.0, 1.0, -2.0, -2.0, 0.5])
WEIGHTS = np.array([0.1, 0.1, 0.1, 0.15, 0.15, 0.3])
"""The same along a sequence, as every aggregation gives them."""
OF = np.array([0, 0, 0, 1, 1, 2])
TIGHT = {"clip_low": 0.05, "clip_high": 0.08}


def pack():
    empty = torch.zeros(0, dtype=torch.int64)
    return Pack(
        token_ids_N=empty, position_ids_N=empty, index_R=empty, target_R=empty,
        behaviour_R=torch.tensor(BEHAVIOUR), advantages_R=torch.tensor(ADVANTAGES), weights_R=torch.tensor(WEIGHTS),
        sequence_R=torch.tensor(OF), lengths=(4, 3, 2),
    )  # fmt: skip


def by_sequence(values, reduce):
    return np.array([reduce(values[number == OF]) for number in OF])


def to_go(values):
    return np.array([values[place:][OF[place:] == OF[place]].sum() for place in range(len(values))])


def correction(name):
    rho = np.exp(PROXIMAL - BEHAVIOUR)
    whole = np.exp(by_sequence(PROXIMAL - BEHAVIOUR, np.sum))
    mean = np.exp(by_sequence(PROXIMAL - BEHAVIOUR, np.mean))
    return {
        "none": np.ones(6),
        "decoupled": rho,
        "truncated_token": np.minimum(rho, 2),
        "truncated_sequence": np.minimum(whole, 2),
        "masked_token": np.where(rho > 2, 0, rho),
        "masked_sequence": np.where(whole > 2, 0, whole),
        "icepop": np.where((rho < 0.5) | (rho > 5), 0, rho),
        "geometric_mask": np.where((mean < 0.9) | (mean > 1.1), 0, 1.0),
    }[name]


def form(name, logprobs, anchor, advantages):
    rho = np.exp(logprobs - anchor)
    if name == "rloo":
        return -advantages * logprobs
    if name == "cispo":
        return -np.clip(np.exp(LOGPROBS - anchor), 0.95, 1.08) * advantages * logprobs
    if name == "gspo":
        rho = np.exp(by_sequence(LOGPROBS - anchor, np.mean)) * np.exp(logprobs - LOGPROBS)  # by token
    return -np.minimum(rho * advantages, np.clip(rho, 0.95, 1.08) * advantages)


def expected(logprobs, config):
    anchor = BEHAVIOUR if config.correction in ("none", "geometric_mask") else PROXIMAL
    estimators = {"k1": lambda d: d, "k2": lambda d: d**2 / 2, "k3": lambda d: np.exp(-d) + d - 1}
    estimate = estimators[config.kl_estimator]
    in_loss = config.kl_coefficient * (config.kl_place == "loss")
    in_reward = config.kl_coefficient * (config.kl_place == "reward")
    advantages = ADVANTAGES - in_reward * to_go(estimate(LOGPROBS - REFERENCE))
    terms = form(config.name, logprobs, anchor, advantages) * correction(config.correction)
    return terms + in_loss * estimate(logprobs - REFERENCE) - config.entropy_coefficient * ENTROPY


def compare(**settings):
    config = ObjectiveConfig(**settings)
    logprobs = torch.tensor(LOGPROBS, requires_grad=True)
    others = {"proximal_R": PROXIMAL, "reference_R": REFERENCE, "entropy_R": ENTROPY}
    loss = Objective(config)(logprobs, pack(), **{name: torch.tensor(value) for name, value in others.items()})
    (loss.terms_R * torch.tensor(WEIGHTS)).sum().backward()
    assert tuple(loss.figures) == Objective(config).figures, "the engine names them in this order"
    np.testing.assert_allclose(loss.terms_R.detach(), expected(LOGPROBS, config), rtol=0, atol=1e-6)
    step = 1e-6
    difference = [(expected(LOGPROBS + step * unit, config) - expected(LOGPROBS - step * unit, config)) @ WEIGHTS
                  for unit in np.eye(6)]  # fmt: skip
    np.testing.assert_allclose(logprobs.grad, np.array(difference) / (2 * step), rtol=0, atol=1e-6)
    return loss


NAMES = ObjectiveConfig.model_fields["name"].annotation.__args__
CORRECTIONS = ObjectiveConfig.model_fields["correction"].annotation.__args__


@pytest.mark.parametrize(("name", "correction"), product(NAMES, CORRECTIONS))
def test_every_objective_with_every_correction_is_that_of_numpy(name, correction):
    clips = {} if name == "rloo" else TIGHT
    compare(name=name, correction=correction, **clips)


@pytest.mark.parametrize(
    ("estimator", "place"), [("k2", "loss"), ("k3", "loss"), *product(("k1", "k2", "k3"), ("reward",))]
)
def test_divergence_in_the_loss_or_as_a_reward(estimator, place):
    loss = compare(kl_coefficient=0.3, kl_estimator=estimator, kl_place=place, **TIGHT)
    assert loss.figures["kl"].shape == (6,)


def test_entropy_is_added_with_its_gradient():
    loss = compare(entropy_coefficient=0.3, kl_coefficient=0.1, correction="icepop", **TIGHT)
    np.testing.assert_allclose(loss.figures["entropy"], ENTROPY)
    entropy = torch.tensor(ENTROPY, requires_grad=True)
    Objective(ObjectiveConfig(entropy_coefficient=0.3))(
        torch.tensor(LOGPROBS), pack(), entropy_R=entropy
    ).terms_R.sum().backward()
    assert entropy.grad.tolist() == [-0.3] * 6


def test_what_is_needed_follows_from_the_configuration():
    def needs(**settings):
        objective = Objective(ObjectiveConfig(**settings))
        return objective.needs_proximal, objective.needs_reference, objective.needs_entropy

    assert needs() == (False, False, False)
    assert needs(correction="geometric_mask") == (False, False, False)
    assert needs(correction="icepop", kl_coefficient=0.1, entropy_coefficient=0.1) == (True, True, True)


@pytest.mark.parametrize("name", ["reference_R", "entropy_R"])
def test_what_is_needed_and_missing_is_named(name):
    config = ObjectiveConfig(kl_coefficient=0.1) if name == "reference_R" else ObjectiveConfig(entropy_coefficient=0.1)
    with pytest.raises(ValueError, match=f"{name} is None"):
        Objective(config)(torch.tensor(LOGPROBS), pack())


def test_without_a_proximal_policy_the_policy_itself_is_it():
    config = ObjectiveConfig(correction="truncated_token")
    given = Objective(config)(torch.tensor(LOGPROBS), pack(), proximal_R=torch.tensor(LOGPROBS))
    assert torch.equal(Objective(config)(torch.tensor(LOGPROBS), pack()).terms_R, given.terms_R)


def test_figures_say_what_was_cut():
    figures = compare(name="grpo", correction="truncated_token", **TIGHT).figures
    assert figures["correction_cut"].tolist() == [0, 1, 0, 0, 0, 1]
    assert figures["correction_weight"].max() == 2
    assert figures["clip_fraction"].tolist() == [1, 1, 0, 0, 1, 1]
