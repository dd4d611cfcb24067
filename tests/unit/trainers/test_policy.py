"""Packed logprobs against the padded form and the model itself; chunks, entropies and their gradients."""

import random

import pytest
import torch

from pipelines.local.tiny_model import build_tiny_model
from schemas.errors import ModelError
from trainers.batch import Example
from trainers.logits import Room
from trainers.packing import to_pack
from trainers.policy import Policy, _Chosen, load_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def draw_examples(number=7):
    draw = random.Random(0)
    examples = []
    for _ in range(number):
        prompt, answer = draw.randint(1, 9), draw.randint(1, 12)
        tokens = tuple(draw.choices(range(6, 80), k=prompt + answer))
        mask = (True, *(draw.random() < 0.8 for _ in range(answer - 1)))
        examples.append(Example(tokens, prompt, (-4.4,) * answer, mask, draw.gauss(0, 1)))
    return examples


def padded(causal, examples, temperature):
    """One row an example, padded on the right; transformers' own attention, masks and logits."""
    causal.set_attn_implementation("sdpa")
    longest = max(len(example.token_ids) for example in examples)
    rows = torch.tensor([[*example.token_ids, *[0] * (longest - len(example.token_ids))] for example in examples])
    mask = torch.tensor([[place < len(example.token_ids) for place in range(longest)] for example in examples])
    every = (causal(rows, attention_mask=mask.long()).logits / temperature).log_softmax(2)
    places = [(row, example.prompt_tokens + place) for row, example in enumerate(examples)
              for place, own in enumerate(example.mask) if own]  # fmt: skip
    logprobs = torch.stack([every[row, at - 1, rows[row, at]] for row, at in places])
    entropies = torch.stack(
        [torch.distributions.Categorical(logits=every[row, at - 1]).entropy() for row, at in places]
    )
    return logprobs, entropies


def gradient(causal):
    return torch.cat([parameter.grad.flatten() for parameter in causal.parameters()])


@pytest.mark.parametrize("kept_bytes", [0, 9000, 1 << 30])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_is_padded_in_logprobs_entropies_and_gradients(model_dir, kept_bytes, temperature):
    examples = draw_examples()
    ours, theirs = (load_model(str(model_dir), torch.float32) for _ in range(2))
    room = Room(kept_bytes, chunk_logits=900)  # a few tokens a chunk
    found = Policy(ours, temperature, room)(to_pack(examples), entropy=True)
    wanted = padded(theirs, examples, temperature)
    pulls = [torch.randn(len(found[0]), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)
    for results in (found, wanted):
        sum((result * pull).sum() for result, pull in zip(results, pulls, strict=True)).backward()
    torch.testing.assert_close(gradient(ours), gradient(theirs), atol=1e-5, rtol=1e-5)


def test_without_entropy_the_logprobs_are_the_same_and_alone(model_dir):
    policy, pack = Policy(load_model(str(model_dir), torch.float32), 1.0), to_pack(draw_examples())
    with torch.no_grad():
        assert torch.equal(policy(pack), policy(pack, entropy=True)[0])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradients_of_logprob_and_entropy_are_those_of_finite_differences(temperature):
    logits = torch.tensor([[0.3, -1.2, 2.0, 0.0], [0.0, 0.0, -3.0, 1.0]])
    target, pulls, width = torch.tensor([2, 0]), torch.tensor([[0.5, -2.0], [1.5, 0.25]]), 1e-3

    def value(at, entropy=True):
        outputs = _Chosen.apply(at, target, temperature, entropy)
        return (outputs[0] * pulls[0]).sum() + (outputs[1] * pulls[1]).sum()

    at = logits.clone().requires_grad_()
    value(at).backward()
    for place in range(logits.numel()):
        step = torch.zeros(logits.numel()).index_fill(0, torch.tensor(place), width).view_as(logits)
        slope = (value(logits + step) - value(logits - step)) / (2 * width)
        assert at.grad.flatten()[place].item() == pytest.approx(slope.item(), abs=2e-3)


def test_bfloat16_logits_are_reduced_in_full_precision_and_their_gradient_is_theirs():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 299])
    logprobs = _Chosen.apply(logits, target, 1.0, False)
    wanted = logits.detach().double().log_softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), wanted, atol=1e-6, rtol=0)
    logprobs.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(("kept_bytes", "numbers"), [(0, 0), (1 << 30, 1)])
def test_logits_are_kept_for_the_backward_pass_up_to_a_number_of_bytes(model_dir, kept_bytes, numbers):
    policy = Policy(load_model(str(model_dir), torch.float32), 1.0, Room(kept_bytes, 1 << 25))
    pack = to_pack(draw_examples())
    shape = (len(pack.target_R), policy.causal.config.vocab_size)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda x: x):
        policy(pack)
    assert saved.count(shape) == numbers


def test_model_that_lets_packed_sequences_see_each_other_is_refused(model_dir):
    causal = load_model(str(model_dir), torch.float32)
    causal.model.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "sequences": None}), with_kwargs=True
    )
    with pytest.raises(ModelError, match="cannot be trained packed"):
        Policy(causal, 1.0).check(list(range(6, 38)))


def test_probe_is_computed_by_the_models_own_attention_and_leaves_ours_in_place(model_dir):
    causal = load_model(str(model_dir), torch.float32)
    used = []
    causal.model.layers[0].self_attn.register_forward_pre_hook(
        lambda layer, _: used.append(layer.config._attn_implementation)
    )
    policy = Policy(causal, 1.0)
    policy.check(list(range(6, 20)))
    policy(to_pack(draw_examples()))
    assert used == ["asyncflow_packed", "sdpa", "asyncflow_packed"]


def test_weights_are_named_anew_only_when_they_have_moved(model_dir, monkeypatch):
    policy = Policy(load_model(str(model_dir), torch.float32), 1.0)
    first = policy.weights()
    weight = policy.causal.model.layers[0].mlp.up_proj.weight
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        weight.add_(1.0)
    assert policy.weights().keys() == first.keys()
    assert torch.equal(policy.weights()[name], weight)
    weight.data = torch.zeros_like(weight)  # as DeepSpeed does where it divides weights
    assert torch.equal(policy.weights()[name], weight)
    monkeypatch.setattr(policy, "_name", lambda given: pytest.fail("nothing has moved"))
    assert policy.weights().keys() == first.keys()
