"""What somebody wrote is trained as supervised: the gradient is that of the cross entropy, whatever the objective."""

from dataclasses import replace

import pytest
import torch

from pipelines.local.tiny_model import build_tiny_model
from schemas.objectives import ObjectiveConfig
from tests.support.samples import draw_examples, group
from trainers.aggregation import weigh
from trainers.batch import to_examples
from trainers.objective import Before, Objective
from trainers.packing import to_pack
from trainers.policy import Policy, load_model

WEIGHT = 0.5
"""Of the demonstrations."""
NAMES = ("grpo", "dr_grpo", "rloo", "reinforce++", "cispo", "gspo")
CORRECTIONS = ObjectiveConfig.model_fields["correction"].annotation.__args__


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def demonstrations():
    """Three texts with a token here and there that is not trained; their logprobs are 0, as they come."""
    drawn = draw_examples(3, seed=4)
    return [
        replace(one, advantage=WEIGHT, behaviour_logprobs=(0.0,) * len(one.mask), as_given=True, demonstrated=True)
        for one in drawn
    ]


def cross_entropy(model_dir, examples):
    """Torch's own, by the model's own forward pass, one text after the other: the mean over trained tokens."""
    causal = load_model(str(model_dir), torch.float32)
    causal.set_attn_implementation("sdpa")
    total = torch.zeros(())
    for one in examples:
        labels = torch.full((len(one.token_ids),), -100)
        for place, trained in enumerate(one.mask, start=one.prompt_tokens):
            labels[place] = one.token_ids[place] if trained else -100
        logits = causal(torch.tensor([one.token_ids])).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
    (total / sum(one.trained_tokens for one in examples)).backward()
    return gradients(causal)


def gradients(causal):
    return torch.cat([parameter.grad.flatten() for parameter in causal.parameters()])


def trained(model_dir, examples, before=None, **settings):
    """The gradient of the objective, and what it says."""
    policy = Policy(load_model(str(model_dir), torch.float32), 1.0)
    pack = to_pack(weigh(examples, "token_mean", 1))
    logprobs = policy(pack)
    known = before(logprobs.detach()) if before else None
    told = Objective(ObjectiveConfig(**settings))(logprobs, pack, known)
    (told.terms_R * pack.weights_R).sum().backward()
    return gradients(policy.causal), told


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("correction", ["none", "decoupled", "masked_sequence", "icepop", "geometric_mask"])
def test_gradient_is_the_weight_times_that_of_the_cross_entropy(model_dir, name, correction):
    examples = demonstrations()
    found, _ = trained(model_dir, examples, name=name, correction=correction)
    wanted = WEIGHT * cross_entropy(model_dir, examples)
    assert wanted.abs().max() > 0.01
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_policy_that_moved_since_the_first_update_of_the_step_changes_nothing(model_dir, correction):
    """Another proximal policy and a reference policy: neither drew these tokens."""

    def moved(logprobs):
        return Before(logprobs - 3.0, logprobs - 5.0)

    for place in ("loss", "reward"):
        found, told = trained(
            model_dir, demonstrations(), moved, correction=correction, kl_coefficient=0.5, kl_place=place
        )
        torch.testing.assert_close(found, WEIGHT * cross_entropy(model_dir, demonstrations()), atol=1e-6, rtol=0)
        assert not told.figures["clip_fraction"].any()
        if correction != "none":
            assert torch.equal(told.figures["correction_weight"], torch.ones_like(told.terms_R))
            assert not told.figures["correction_cut"].any()


@pytest.mark.parametrize("bounds", [{"correction_low": 1.5}, {"correction_high": 0.9}])
def test_no_bound_cuts_what_nobody_drew(model_dir, bounds):
    found, _ = trained(model_dir, demonstrations(), correction="icepop", **bounds)
    torch.testing.assert_close(found, WEIGHT * cross_entropy(model_dir, demonstrations()), atol=1e-6, rtol=0)


def test_beside_answers_each_gets_its_own_gradient(model_dir):
    """Weights are those of all tokens of the step, so gradients add up."""
    answers, texts = draw_examples(4, seed=1), demonstrations()
    both, told = trained(model_dir, [*answers, *texts], correction="truncated_token")
    tokens = [sum(one.trained_tokens for one in examples) for examples in (answers, texts)]
    alone, _ = trained(model_dir, answers, correction="truncated_token")
    supervised = WEIGHT * cross_entropy(model_dir, texts)
    torch.testing.assert_close(both, (tokens[0] * alone + tokens[1] * supervised) / sum(tokens), atol=1e-6, rtol=0)
    assert told.left_out["correction_cut"].tolist() == [False] * tokens[0] + [True] * tokens[1]


def test_rows_say_what_is_demonstrated_and_what_stands_as_it_is():
    purposes = ("train", "feedback", "correction", "demonstration")
    groups = [group(size=1, purpose=purpose) for purpose in purposes]
    examples = to_examples(groups, [[1.0]] * 4)
    assert [one.as_given for one in examples] == [False, False, True, True]
    assert [one.demonstrated for one in examples] == [False, False, False, True]
    pack = to_pack(examples)
    assert pack.as_given_R.tolist() == [False] * 6 + [True] * 6
    assert pack.demonstrated_R.tolist() == [False] * 9 + [True] * 3
