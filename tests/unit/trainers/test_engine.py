"""Numerics of the policy and of DeepSpeed at every stage, on a tiny model in float32."""

import json
import math
from dataclasses import replace

import pytest
import torch

from pipelines.local.tiny_model import build_tiny_model
from schemas.config import RunConfig, validate
from schemas.errors import ConfigError, ModelError, StateError
from tests.support.samples import draw_examples
from tests.support.trajectories import shared_ranks
from trainers.aggregation import weigh
from trainers.batch import Example
from trainers.engine import Engine, Work
from trainers.logits import SMALL, Room
from trainers.objective import Before, Objective
from trainers.packing import share_out, to_pack
from trainers.policy import Policy, load_model
from trainers.precision import fastest_dtype


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def make_engine(model_dir, stage=0, dtype="float32", saved=None, **learner):
    tree = {"model": {"path": str(model_dir)}, "learner": {"zero_stage": stage, **learner}}
    return Engine(validate(tree, "test"), dtype, shared_ranks(), saved)


def work(examples, rate=1e-3, micro_batch_tokens=64):
    return Work(share_out(weigh(examples, "token_mean", 1), 1, micro_batch_tokens), rate)


def logprobs_of(policy, examples):
    pack = to_pack(examples).to(next(policy.parameters()).device)
    return policy(pack)


def test_packed_logprobs_are_those_of_one_by_one_and_of_the_model_itself(model_dir):
    policy = Policy(load_model(str(model_dir), torch.float32), temperature=0.7)
    examples = draw_examples(11)
    packed = logprobs_of(policy, examples)
    single = torch.cat([logprobs_of(policy, [example]) for example in examples])
    torch.testing.assert_close(packed, single, atol=1e-5, rtol=0)
    expected = []
    for example in examples:
        logits = policy.causal(torch.tensor([example.token_ids])).logits[0] / 0.7
        chosen = logits.log_softmax(1)
        expected += [chosen[example.prompt_tokens + place - 1, example.token_ids[example.prompt_tokens + place]]
                     for place, own in enumerate(example.mask) if own]  # fmt: skip
    torch.testing.assert_close(packed, torch.stack(expected), atol=1e-5, rtol=0)


def test_figures_are_means_over_tokens_also_where_weights_do_not_add_up_to_one(model_dir):
    examples = draw_examples(9)
    objective = {"correction": "truncated_token", "correction_high": 1.02}
    whole = make_engine(model_dir, objective=objective).train(work(examples))
    tenth = [[replace(one, weight=one.weight / 10) for one in pack] for pack in work(examples).minibatches[0]]
    found = make_engine(model_dir, objective=objective).train(Work([tenth], 1e-3))
    assert found.figures == pytest.approx(whole.figures)
    assert found.loss == pytest.approx(whole.loss / 10)
    assert 0 < whole.figures["correction_cut"] < 1
    assert 0.5 < whole.figures["correction_weight"] < 1.02
    of_nothing = make_engine(model_dir).train(Work([[]], 1e-3)).figures
    assert list(of_nothing) == ["logprob_gap_mean", "clip_fraction"]
    assert all(math.isnan(mean) for mean in of_nothing.values())


def test_figures_say_nothing_of_what_somebody_wrote(model_dir):
    """As with its logprobs of 0 an engine would look many nats off."""
    answers = draw_examples(4)
    texts = [replace(one, behaviour_logprobs=(0.0,) * len(one.mask), as_given=True, demonstrated=True)
             for one in draw_examples(3, seed=4)]  # fmt: skip
    objective = {"correction": "truncated_token", "correction_high": 1.02}
    alone, both = (make_engine(model_dir, objective=objective).train(work(all_)) for all_ in (answers, answers + texts))
    assert both.figures == pytest.approx(alone.figures)
    assert both.figures["logprob_gap_mean"] < 1
    nothing = make_engine(model_dir, objective=objective).train(work(texts))
    assert nothing.applied
    assert all(math.isnan(mean) for mean in nothing.figures.values())


def test_gradient_does_not_depend_on_chunks_or_packs(model_dir):
    examples = draw_examples(7)

    def gradient(room=SMALL):
        policy = Policy(load_model(str(model_dir), torch.float32), 1.0, room)
        logprobs_of(policy, examples).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])

    whole = gradient()
    torch.testing.assert_close(gradient(Room(SMALL.kept_bytes, chunk_logits=300)), whole, atol=1e-5, rtol=1e-5)


def test_all_zero_stages_give_the_same_weights_and_those_of_plain_torch(model_dir):
    examples = draw_examples(23)
    results = []
    for stage in (0, 1, 2, 3):
        engine = make_engine(model_dir, stage)
        outcomes = [engine.train(work(examples)) for _ in range(3)]
        assert all(outcome.applied for outcome in outcomes)
        results.append((engine.state_dict(), [outcome.grad_norm for outcome in outcomes]))
    reference = plain_torch(model_dir, examples)
    for weights, norms in results:
        assert norms == pytest.approx(results[0][1], abs=1e-6)
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor.cpu(), reference[name], atol=1e-5, rtol=0)


def plain_torch(model_dir, examples):
    """The same three steps, written down anew: one pass over each sample, loss as the token mean."""
    model = load_model(str(model_dir), torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    tokens = sum(sum(example.mask) for example in examples)
    for _ in range(3):
        for example in examples:
            logprobs = model(torch.tensor([example.token_ids])).logits[0].log_softmax(1)
            for place, own in enumerate(example.mask):
                if own:
                    at = example.prompt_tokens + place
                    ratio = (logprobs[at - 1, example.token_ids[at]] - example.behaviour_logprobs[place]).exp()
                    gain = torch.min(ratio * example.advantage, ratio.clamp(0.8, 1.2) * example.advantage)
                    (-gain / tokens).backward(retain_graph=True)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(0, "float32"), (2, "float32"), (3, "float32"), (0, "bfloat16"), (1, "bfloat16"), (3, "bfloat16")],
)
def test_step_with_a_gradient_that_is_not_finite_changes_nothing_and_the_next_one_works(model_dir, stage, dtype):
    engine = make_engine(model_dir, stage, dtype)
    engine.train(work(draw_examples(3)))
    before = {name: tensor.clone() for name, tensor in engine.state_dict().items()}
    bad = Example((7, 8, 9), 1, (-4.0, -4.0), (True, True), math.nan)
    assert not engine.train(work([bad])).applied
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.state_dict().items())
    outcome = engine.train(work(draw_examples(3)))
    assert outcome.applied
    assert math.isfinite(outcome.grad_norm)


@pytest.mark.parametrize(
    "learner",
    [
        {"activation_checkpointing": True},
        {"stage": 2, "deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}},
        {"stage": 3, "deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}},
    ],
    ids=["activation checkpointing", "stage 2, offloaded", "stage 3, offloaded"],
)
def test_what_saves_memory_changes_no_weight(model_dir, tmp_path, learner):
    examples = draw_examples(23)
    plain = make_engine(model_dir)
    if "deepspeed" in learner:
        learner = {**learner, "deepspeed": str(write_json(tmp_path, learner["deepspeed"]))}
    saving = make_engine(model_dir, **learner)
    for _ in range(3):
        norms = [engine.train(work(examples)).grad_norm for engine in (plain, saving)]
        assert norms[0] == pytest.approx(norms[1], abs=1e-6)
    weights = saving.state_dict()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=0, check_device=False)


def write_json(directory, tree):
    file = directory / "deepspeed.json"
    file.write_text(json.dumps(tree))
    return file


def test_activation_checkpointing_keeps_less_and_turns_no_dropout_on(model_dir):
    saved = []

    def kept(**learner):
        engine = make_engine(model_dir, **learner)
        engine._trained.module.room = Room(0, SMALL.chunk_logits)
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor.numel()) or tensor, lambda x: x
        ):
            logprobs_of(engine._trained.module, draw_examples(5))
        layers = {type(m).__name__ for m in engine._trained.module.modules() if m.training}
        return sum(saved), layers

    without, none = kept()
    numbers, layers = kept(activation_checkpointing=True)
    assert numbers < without / 2
    assert (none, layers) == (set(), {"LlamaDecoderLayer"})


@pytest.mark.parametrize("stage", [0, 3])
def test_the_reference_is_the_model_of_the_beginning_and_stays(model_dir, tmp_path, stage):
    objective = {"kl_coefficient": 0.1, "entropy_coefficient": 0.01}
    engine = make_engine(model_dir, stage, objective=objective)
    first, second = (engine.train(work(draw_examples(5))) for _ in range(2))
    assert first.figures["kl"] == pytest.approx(0.0, abs=1e-6)
    assert second.figures["kl"] > 1e-5
    assert first.figures["entropy"] == pytest.approx(math.log(engine.vocabulary), rel=0.05), (
        "a random model knows nothing"
    )
    engine.save(tmp_path)
    resumed = make_engine(model_dir, stage, saved=tmp_path, objective=objective)
    assert resumed.train(work(draw_examples(5))).figures["kl"] > second.figures["kl"]


STAGES = [("float32", stage) for stage in range(4)] + [("bfloat16", stage) for stage in (0, 1, 3)]


@pytest.mark.parametrize(("dtype", "stage"), STAGES)
def test_checkpoint_restores_model_and_optimizer_to_the_bit(model_dir, tmp_path, dtype, stage):
    engine = make_engine(model_dir, stage, dtype)
    examples = draw_examples(5)
    engine.train(work(examples))
    engine.save(tmp_path)
    expected = engine.train(work(examples))
    weights = {name: tensor.clone() for name, tensor in engine.state_dict().items()}
    other = make_engine(model_dir, stage, dtype, saved=tmp_path)
    assert other.train(work(examples)) == expected
    assert all(torch.equal(tensor, weights[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("saved_at", range(4))
@pytest.mark.parametrize("loaded_at", [0, 2, 3])
def test_training_goes_on_at_another_stage(model_dir, tmp_path, saved_at, loaded_at):
    engine = make_engine(model_dir, saved_at)
    engine.train(work(draw_examples(5)))
    engine.save(tmp_path)
    other = make_engine(model_dir, loaded_at, saved=tmp_path)
    for seed in (1, 2):
        outcomes = [each.train(work(draw_examples(5, seed))) for each in (engine, other)]
        assert outcomes[0].loss == pytest.approx(outcomes[1].loss, abs=1e-6)
    weights = other.state_dict()
    for name, tensor in engine.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=0, check_device=False)


PPO = {"name": "ppo"}


@pytest.mark.parametrize(("dtype", "stage"), [("float32", 0), ("float32", 1), ("bfloat16", 0), ("bfloat16", 3)])
def test_value_head_learns_is_saved_and_goes_on_and_is_not_published(model_dir, tmp_path, dtype, stage):
    objective = PPO | {"gae_lambda": 1.0}
    engine = make_engine(model_dir, stage, dtype, objective=objective)
    examples = [replace(example, advantage=1.0) for example in draw_examples(9)]  # rewards
    first, *_, last = (engine.train(work(examples, rate=1e-2)).figures for _ in range(6))
    assert first["return_mean"] == pytest.approx(1.0), "values begin with 0"
    assert last["value_loss"] < first["value_loss"] / 2
    assert "value_explained_variance" in last
    assert engine.state_dict().keys() == make_engine(model_dir).state_dict().keys()
    engine.save(tmp_path)
    resumed = make_engine(model_dir, stage, dtype, saved=tmp_path, objective=objective)
    assert [resumed.train(work(examples)) for _ in range(2)] == [engine.train(work(examples)) for _ in range(2)]


@pytest.mark.parametrize(("saved_at", "loaded_at"), [(0, 3), (3, 0), (2, 1)])
def test_value_head_goes_on_at_another_stage(model_dir, tmp_path, saved_at, loaded_at):
    engine = make_engine(model_dir, saved_at, objective=PPO)
    engine.train(work(draw_examples(5), rate=1e-2))
    engine.save(tmp_path)
    other = make_engine(model_dir, loaded_at, saved=tmp_path, objective=PPO)
    for seed in (1, 2):
        outcomes = [each.train(work(draw_examples(5, seed))) for each in (engine, other)]
        assert outcomes[0].figures == pytest.approx(outcomes[1].figures, abs=1e-5)


def test_checkpoint_without_a_value_head_goes_on_with_a_new_one_only_if_that_is_said(model_dir, tmp_path):
    make_engine(model_dir).save(tmp_path)
    with pytest.raises(StateError, match="fresh_value_head = true"):
        make_engine(model_dir, saved=tmp_path, objective=PPO)
    fresh = PPO | {"fresh_value_head": True}
    engine = make_engine(model_dir, saved=tmp_path, objective=fresh)
    assert engine.train(work(draw_examples(5))).figures["value_loss"] > 0
    engine.save(tmp_path)
    kept = make_engine(model_dir, saved=tmp_path, objective=fresh).train(work(draw_examples(5)))
    assert kept == engine.train(work(draw_examples(5))), "a head that is there is not made anew"
    make_engine(model_dir, saved=tmp_path).train(work(draw_examples(5)))  # and without values it is left out


def count_passes(engine):
    """Of the policy: with gradients, and without."""
    passes = []
    engine._trained.module.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    return passes


@pytest.mark.parametrize(
    ("objective", "parts", "looks"),
    [({}, 1, 0), ({}, 2, 0), ({"correction": "decoupled"}, 1, 0), ({"correction": "decoupled"}, 2, 2), (PPO, 1, 1),
     (PPO | {"normalise_advantages": False}, 1, 0), (PPO | {"normalise_advantages": False}, 2, 2)],
)  # fmt: skip
def test_nothing_is_computed_twice_that_the_first_update_shows(model_dir, objective, parts, looks):
    engine = make_engine(model_dir, objective=objective)
    passes = count_passes(engine)
    packs = share_out(weigh(draw_examples(5), "token_mean", 1), 1, 4096)[0]
    outcome = engine.train(Work([packs] * parts, 1e-3))
    assert (passes.count(False), passes.count(True)) == (looks, parts)
    assert outcome.figures.get("updates", 1.0) == parts


def test_ratios_of_later_updates_are_those_to_the_policy_before_the_first(model_dir):
    config = validate({"learner": {"objective": {"correction": "decoupled"}}}, "test").learner.objective
    examples = weigh(draw_examples(5), "token_mean", 1)
    engine = make_engine(model_dir, objective={"correction": "decoupled"})
    pack = to_pack(examples).to(engine._ranks.device)
    proximal = engine._trained.module(pack).detach()
    found = engine.train(Work([[examples], [examples]], 1e-2))
    other = make_engine(model_dir, objective={"correction": "decoupled"})
    first = other.train(Work([[examples]], 1e-2))
    with torch.no_grad():
        second = Objective(config)(other._trained.module(pack), pack, Before(proximal))
    assert found.loss == pytest.approx((first.loss + float((second.terms_R * pack.weights_R).sum())) / 2, abs=1e-6)
    assert second.figures["clip_fraction"].any(), "the first update went far"


def test_update_that_is_not_finite_leaves_the_others_of_its_step(model_dir):
    good, bad = draw_examples(3), Example((7, 8, 9), 1, (-4.0, -4.0), (True, True), math.nan)
    parts = [share_out(weigh(each, "token_mean", 1), 1, 64)[0] for each in (good, [bad], good)]
    engine, other = make_engine(model_dir), make_engine(model_dir)
    found, expected = engine.train(Work(parts, 1e-3)), other.train(Work([parts[0], parts[2]], 1e-3))
    assert found.applied
    assert (found.figures["updates"], found.grad_norm) == (2, expected.grad_norm)
    for name, tensor in other.state_dict().items():
        assert torch.equal(engine.state_dict()[name], tensor)
    assert not engine.train(Work([parts[1], parts[1]], 1e-3)).applied


def test_state_of_another_model_is_refused(model_dir, tmp_path):
    make_engine(model_dir).save(tmp_path)
    other = build_tiny_model(tmp_path / "other", tied=False)
    with pytest.raises(StateError, match=r"lacks weights/lm_head\.weight"):
        make_engine(other, saved=tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_published_names_are_those_of_the_model_with_a_tied_head_once(tmp_path, tied):
    model_dir = build_tiny_model(tmp_path / "model", tied=tied)
    names = set(make_engine(model_dir).state_dict())
    assert ("lm_head.weight" in names) is not tied
    assert "model.embed_tokens.weight" in names


@pytest.mark.parametrize("stage", [0, 3])
def test_probe_is_what_packed_training_computes(model_dir, stage):
    engine = make_engine(model_dir, stage)
    engine.check(list(range(6, 38)))
    assert len(engine.probe(list(range(6, 38)))) == 31


def test_model_that_changes_its_logits_after_the_head_is_refused(model_dir):
    causal = load_model(str(model_dir), torch.float32)
    forward = causal.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    causal.forward = scaled
    with pytest.raises(ModelError, match="cannot be trained packed"):
        Policy(causal, 1.0).check(list(range(6, 38)))


def test_missing_model_and_wrong_dtype_are_named(tmp_path, model_dir):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(str(tmp_path), torch.float32)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(str(tmp_path), torch.float32)
    with pytest.raises(ConfigError, match="float16"):
        Engine(RunConfig(), "float16", shared_ranks())


def test_fastest_dtype_is_one_of_the_two():
    assert fastest_dtype() in ("float32", "bfloat16")
