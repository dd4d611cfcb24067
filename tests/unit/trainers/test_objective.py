"""The whole objective, against one written in numpy, and its gradients against finite differences."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from schemas.objectives import ObjectiveConfig
from trainers.objective import Before, Objective
from trainers.packing import Pack
from trainers.returns import explain_variance, normalise

LOGPROBS = np.array([-1.0, -0.5, -2.0, -0.1, -3.0, -1.0])
PROXIMAL = np.array([-1.1, -0.6, -1.6, -0.2, -2.7, -1.1])
BEHAVIOUR = np.array([-1.3, -1.8, -1.5, -0.3, -2.9, -1.9])
REFERENCE = np.array([-0.8, -0.7, -2.5, -0.3, -2.0, -1.0])
ENTROPY = np.array([1.0, 2.0, 0.5, 0.7, 0.1, 0.3])
VALUES = np.array([0.35, 0.12, 0.6, -0.5, -0.93, 0.15])
VALUES_BEFORE = np.array([0.1, 0.2, 0.3, -0.1, -0.8, 0.4])
ADVANTAGES = np.array([1.0, 1.0, 1.0, -2.0, -2.0, 0.5])
WEIGHTS = np.array([0.1, 0.1, 0.1, 0.15, 0.15, 0.3])
"""The same along a sequence, as every aggregation gives them."""
OF = np.array([0, 0, 0, 1, 1, 2])
TIGHT = {"clip_low": 0.05, "clip_high": 0.08}


def pack(as_given=(False,) * 6, demonstrated=(False,) * 6):
    empty = torch.zeros(0, dtype=torch.int64)
    return Pack(
        token_ids_N=empty, position_ids_N=empty, index_R=empty, target_R=empty,
        behaviour_R=torch.tensor(BEHAVIOUR), advantages_R=torch.tensor(ADVANTAGES), weights_R=torch.tensor(WEIGHTS),
        sequence_R=torch.tensor(OF), as_given_R=torch.tensor(as_given), demonstrated_R=torch.tensor(demonstrated),
        group_S=torch.tensor([0, 0, 0]), lengths=(4, 3, 2),
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


def gae(rewards, gamma, gae_lambda):
    """Of each token the discounted sum of surprises from it on, written as the double sum of the paper."""
    found = np.zeros(6)
    for place in range(6):
        for later in range(place, 6):
            if OF[later] == OF[place]:
                ahead = VALUES_BEFORE[later + 1] if later < 5 and OF[later + 1] == OF[later] else 0.0
                surprise = rewards[later] + gamma * ahead - VALUES_BEFORE[later]
                found[place] += (gamma * gae_lambda) ** (later - place) * surprise
    return found


def expected_advantages(config):
    in_reward = config.kl_coefficient * (config.kl_place == "reward")
    penalties = in_reward * ESTIMATORS[config.kl_estimator](PROXIMAL - REFERENCE)
    if config.name == "ppo":  # what is an advantage elsewhere is the reward of the answer
        return gae(ADVANTAGES * [0, 0, 1, 0, 1, 1] - penalties, config.gamma, config.gae_lambda)
    return ADVANTAGES - to_go(penalties)


def value_terms(values, config):
    if config.name != "ppo":
        return 0.0
    returns = VALUES_BEFORE + expected_advantages(config)
    bound = config.value_clip or np.inf
    inside = VALUES_BEFORE + np.clip(values - VALUES_BEFORE, -bound, bound)
    return config.value_coefficient * np.maximum((values - returns) ** 2, (inside - returns) ** 2) / 2


ESTIMATORS = {"k1": lambda d: d, "k2": lambda d: d**2 / 2, "k3": lambda d: np.exp(-d) + d - 1}


def expected(logprobs, config, values=VALUES):
    anchor = BEHAVIOUR if config.correction in ("none", "geometric_mask") else PROXIMAL
    estimate = ESTIMATORS[config.kl_estimator]
    in_loss = config.kl_coefficient * (config.kl_place == "loss")
    terms = form(config.name, logprobs, anchor, expected_advantages(config)) * correction(config.correction)
    terms = terms + in_loss * estimate(logprobs - REFERENCE) - config.entropy_coefficient * ENTROPY
    return terms + value_terms(values, config)


def before(objective):
    known = Before(torch.tensor(PROXIMAL), torch.tensor(REFERENCE))
    if not objective.needs_values:
        return known
    return known._replace(returns=objective.find_returns(pack(), torch.tensor(VALUES_BEFORE), known))


def compare(**settings):
    config = ObjectiveConfig(**settings)
    objective = Objective(config)
    logprobs, values = (torch.tensor(numbers, requires_grad=True) for numbers in (LOGPROBS, VALUES))
    loss = objective(logprobs, pack(), before(objective), entropy_R=torch.tensor(ENTROPY), values_R=values)
    (loss.terms_R * torch.tensor(WEIGHTS)).sum().backward()
    assert tuple(loss.figures) == objective.figures, "the engine names them in this order"
    np.testing.assert_allclose(loss.terms_R.detach(), expected(LOGPROBS, config), rtol=0, atol=1e-6)
    difference = differences(lambda moved: expected(moved, config), LOGPROBS)
    np.testing.assert_allclose(logprobs.grad, difference, rtol=0, atol=1e-6)
    if objective.needs_values:
        difference = differences(lambda moved: expected(LOGPROBS, config, moved), VALUES)
        np.testing.assert_allclose(values.grad, difference, rtol=0, atol=1e-6)
    return loss


def differences(terms, at, step=1e-6):
    """The gradient of the weighed sum by central differences."""
    return np.array([(terms(at + step * unit) - terms(at - step * unit)) @ WEIGHTS / (2 * step) for unit in np.eye(6)])


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
    assert needs(correction="geometric_mask") == (True, False, False)
    assert needs(kl_coefficient=0.1) == (False, True, False)
    assert needs(kl_coefficient=0.1, kl_place="reward") == (True, True, False)
    assert needs(correction="icepop", kl_coefficient=0.1, entropy_coefficient=0.1) == (True, True, True)


MISSING = {
    "reference_R": {"kl_coefficient": 0.1},
    "entropy_R": {"entropy_coefficient": 0.1},
    "values_R": {"name": "ppo"},
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_needed_and_missing_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is None"):
        Objective(ObjectiveConfig(**MISSING[name]))(torch.tensor(LOGPROBS), pack())


def test_without_a_proximal_policy_the_policy_itself_is_it():
    config = ObjectiveConfig(correction="truncated_token")
    given = Objective(config)(torch.tensor(LOGPROBS), pack(), Before(torch.tensor(LOGPROBS)))
    assert torch.equal(Objective(config)(torch.tensor(LOGPROBS), pack()).terms_R, given.terms_R)


def test_figures_say_what_was_cut():
    figures = compare(name="grpo", correction="truncated_token", **TIGHT).figures
    assert figures["correction_cut"].tolist() == [0, 1, 0, 0, 0, 1]
    assert figures["correction_weight"].max() == 2
    assert figures["clip_fraction"].tolist() == [1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("settings", [
    {"gamma": 0.9, "gae_lambda": 0.5, "value_clip": 0.1},
    {"value_clip": 0.0, "value_coefficient": 2.0},
    {"kl_coefficient": 0.3, "kl_place": "reward", "kl_estimator": "k1", "gae_lambda": 1.0},
    {"kl_coefficient": 0.3, "entropy_coefficient": 0.1, "correction": "icepop"},
])  # fmt: skip
def test_ppo_with_values_and_returns_is_that_of_numpy(settings):
    loss = compare(name="ppo", **settings, **TIGHT)
    assert loss.figures["value_loss"].shape == (6,)


def test_values_that_are_worth_nothing_and_all_explain_none_and_all_of_the_variance():
    def explained(values, returns):
        errors = returns - values
        return explain_variance({
            "loss": 1.0, "value_error": errors.mean(), "value_error_square": (errors**2).mean(),
            "return_mean": returns.mean(), "return_square": (returns**2).mean(),
        })  # fmt: skip

    returns = np.array([1.0, 0.0, 3.0, 2.0])
    half = explained(np.array([1.5, 0.0, 2.5, 1.0]), returns)
    assert half == {"loss": 1.0, "return_mean": 1.5, "value_explained_variance": pytest.approx(1 - 0.3125 / 1.25)}
    assert explained(returns - 1, returns)["value_explained_variance"] == 1, "a constant error is none of the variance"
    assert explained(np.full(4, 1.5), returns)["value_explained_variance"] == 0
    assert np.isnan(explained(returns, np.ones(4))["value_explained_variance"])
    assert explain_variance({"loss": 1.0}) == {"loss": 1.0}


def test_advantages_of_a_step_are_normalised_over_all_ranks_and_without_what_only_fills_a_pack():
    objective = Objective(ObjectiveConfig(name="ppo"))
    here = (pack(), before(objective).returns)
    fills = (replace(pack(), weights_R=torch.zeros(6)), replace(here[1], advantages_R=torch.full((6,), 1e3)))
    first, second, _ = normalise([here, here, fills], lambda moments: [*moments])
    mine = np.tile(here[1].advantages_R, 2)
    np.testing.assert_allclose(
        torch.cat([first.advantages_R, second.advantages_R]), (mine - mine.mean()) / (mine.std() + 1e-6), atol=1e-9
    )
    assert torch.equal(first.returns_R, here[1].returns_R), "what the head learns is not normalised"
    other = [6.0, 6 * 5.0, 6 * 25.0]  # six tokens of another rank, each with an advantage of 5
    (shared,) = normalise([here], lambda moments: [a + b for a, b in zip(moments, other, strict=True)])
    everything = np.concatenate([here[1].advantages_R, np.full(6, 5.0)])
    expected = (here[1].advantages_R.numpy() - everything.mean()) / (everything.std() + 1e-6)
    np.testing.assert_allclose(shared.advantages_R, expected, atol=1e-9)


AS_GIVEN = (False, False, False, True, True, False)
"""The second sequence is of a correction."""


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_advantage_that_stands_as_it_is_meets_no_divergence_but_is_corrected_like_others(place):
    settings = {"kl_coefficient": 0.3, "kl_place": place, "kl_estimator": "k2", "correction": "truncated_token"}
    objective = Objective(ObjectiveConfig(**settings, **TIGHT))
    found = objective(torch.tensor(LOGPROBS), pack(AS_GIVEN), before(objective))
    usual = objective(torch.tensor(LOGPROBS), pack(), before(objective))
    given = torch.tensor(AS_GIVEN)
    assert torch.equal(found.terms_R[~given], usual.terms_R[~given])
    config = ObjectiveConfig(**settings, **TIGHT)
    terms = form("grpo", LOGPROBS, PROXIMAL, ADVANTAGES) * correction("truncated_token")
    if place == "loss":
        terms = terms + 0.3 * ESTIMATORS["k2"](LOGPROBS - REFERENCE)
    np.testing.assert_allclose(found.terms_R[given], terms[np.array(AS_GIVEN)], atol=1e-6)
    np.testing.assert_allclose(usual.terms_R, expected(LOGPROBS, config), atol=1e-6)


def test_values_have_no_part_in_an_advantage_that_stands_as_it_is():
    objective = Objective(ObjectiveConfig(name="ppo", value_clip=0.0, **TIGHT))
    known = Before(torch.tensor(PROXIMAL))
    known = known._replace(returns=objective.find_returns(pack(AS_GIVEN), torch.tensor(VALUES_BEFORE), known))
    values = torch.tensor(VALUES, requires_grad=True)
    told = objective(torch.tensor(LOGPROBS), pack(AS_GIVEN), known, values_R=values)
    given = np.array(AS_GIVEN)
    np.testing.assert_allclose(
        told.terms_R.detach()[given], form("grpo", LOGPROBS, BEHAVIOUR, ADVANTAGES)[given], atol=1e-6
    )
    told.terms_R.sum().backward()
    assert (values.grad != 0).tolist() == [not each for each in AS_GIVEN]
    assert told.left_out["value_loss"].tolist() == list(AS_GIVEN)
    assert told.left_out["clip_fraction"].tolist() == [False] * 6, "a policy drew them"


def test_advantages_that_stand_as_they_are_take_no_part_in_normalising():
    objective = Objective(ObjectiveConfig(name="ppo"))
    returns = before(objective).returns
    (found,) = normalise([(pack(AS_GIVEN), returns)], lambda moments: [*moments])
    others = returns.advantages_R[~torch.tensor(AS_GIVEN)].numpy()
    wanted = (returns.advantages_R.numpy() - others.mean()) / (others.std() + 1e-6)
    np.testing.assert_allclose(found.advantages_R, wanted, atol=1e-9)
