"""Reward models and critics in the engine, on a tiny model."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from pipelines.local.tiny_model import build_tiny_model
from schemas.config import validate
from schemas.errors import ModelError, StateError
from tests.support.samples import draw_groups
from tests.support.trajectories import shared_ranks
from trainers.aggregation import weigh
from trainers.engine import Engine, Work
from trainers.packing import share_out, share_out_together
from trainers.policy import load_model
from trainers.scorer_orders import KINDS
from trainers.scorers import Scorer, empty_classifier, write_classifier

PROBE = list(range(6, 38))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def make_engine(model_dir, kind, stage=0, dtype="float32", saved=None, **settings):
    tree = {"model": {"path": str(model_dir)}, "learner": {"zero_stage": stage, **settings}, "scorer": {"kind": kind}}
    return Engine(validate(tree, "test"), dtype, shared_ranks(), saved, KINDS[kind])


def groups():
    """Five groups of four; the reward is whether the last token is of the upper half."""
    return [[replace(one, weight=1 / 5) for one in group] for group in draw_groups(5)]


def packs_of(kind, micro_batch_tokens):
    if kind == "reward":
        return share_out_together(groups(), 1, micro_batch_tokens)[0]
    examples = [example for group in groups() for example in group]
    return share_out(weigh(examples, "token_mean", 1), 1, micro_batch_tokens)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_stages_packs_and_saved_memory_lead_to_the_same_weights(model_dir, kind):
    def steps(micro_batch_tokens, **settings):
        engine = make_engine(model_dir, kind, **settings)
        losses = [engine.train(Work([packs_of(kind, micro_batch_tokens)], 1e-3)).loss for _ in range(4)]
        return losses, {name: tensor.clone().cpu() for name, tensor in engine.state_dict().items()}

    losses, weights = steps(4096)
    assert losses[-1] < losses[0]
    assert weights["score.weight"].abs().max() > 1e-3
    for found, others in (steps(64), steps(64, stage=3), steps(4096, stage=2, activation_checkpointing=True)):
        assert found == pytest.approx(losses, abs=1e-6)
        for name, tensor in others.items():
            torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "dtype", "stage"), [("reward", "float32", 3), ("critic", "bfloat16", 0)])
def test_checkpoint_goes_on_to_the_bit(model_dir, tmp_path, kind, dtype, stage):
    engine, work = make_engine(model_dir, kind, stage, dtype), Work([packs_of(kind, 64)], 1e-3)
    engine.train(work)
    engine.save(tmp_path)
    other = make_engine(model_dir, kind, stage, dtype, saved=tmp_path)
    assert [other.train(work) for _ in range(2)] == [engine.train(work) for _ in range(2)]


def test_checkpoint_of_a_policy_is_none_of_a_scorer(model_dir, tmp_path):
    Engine(validate({"model": {"path": str(model_dir)}}, "test"), "float32", shared_ranks()).save(tmp_path)
    with pytest.raises(StateError, match=r"lacks weights/score\.weight"):
        make_engine(model_dir, "reward", saved=tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_measured_is_the_loss_and_changes_nothing(model_dir, kind):
    engine, packs = make_engine(model_dir, kind), packs_of(kind, 64)
    engine.train(Work([packs], 1e-2))
    before = engine.measure(packs)
    assert engine.measure(packs) == before
    outcome = engine.train(Work([packs], 1e-2))
    assert before.pop("loss") == pytest.approx(outcome.loss, abs=1e-6)
    assert before == pytest.approx(outcome.figures, abs=1e-6)
    assert engine.measure(packs)["loss"] < outcome.loss


def test_reward_is_told_after_the_last_token_and_a_value_before_each(model_dir):
    scorer = Scorer(load_model(str(model_dir), torch.float32))
    torch.nn.init.normal_(scorer.head.weight)
    engine = make_engine(model_dir, "reward")
    (pack,) = packs_of("reward", 4096)
    engine._trained.module.head.weight.data.copy_(scorer.head.weight.data)
    best = [scorer.probe([6, *example.token_ids])[-1] for example in pack]  # the probe leaves out the first token
    assert len(set(best)) == len(best)
    scores = [scorer.probe(list(example.token_ids))[-1] for example in pack]
    pairs = [(one, other) for one in range(20) for other in range(20)
             if pack[one].group == pack[other].group and pack[one].advantage > pack[other].advantage]  # fmt: skip
    counts = {number: sum(pack[one].group == number for one, _ in pairs) for number in range(5)}
    right = sum(0.2 / counts[pack[one].group] * (scores[one] > scores[other]) for one, other in pairs)
    measured = engine.measure([pack])["pairwise_accuracy"]
    assert measured == pytest.approx(right / sum(0.2 for number in counts if counts[number]), abs=1e-5)


@pytest.mark.parametrize("stage", [0, 3])
def test_probe_is_what_packed_training_computes_and_check_sees_what_does_not_keep_apart(model_dir, stage, monkeypatch):
    engine = make_engine(model_dir, "critic", stage)
    engine.train(Work([packs_of("critic", 64)], 1e-3))
    engine.check(PROBE)
    assert len(engine.probe(PROBE)) == len(PROBE) - 1
    hidden = engine._trained.module._own_hidden
    monkeypatch.setattr(engine._trained.module, "_own_hidden", lambda tokens: hidden(tokens).roll(1, 0))
    with pytest.raises(ModelError, match="hidden states of packed sequences differ"):
        engine.check(PROBE)


def test_written_model_is_what_transformers_loads_and_pads(model_dir, tmp_path):
    from transformers import AutoModelForSequenceClassification

    engine = make_engine(model_dir, "reward", dtype="bfloat16")
    for _ in range(3):
        engine.train(Work([packs_of("reward", 64)], 1e-2))
    write_classifier(str(model_dir), engine.state_dict(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert (loaded.num_labels, loaded.dtype) == (1, torch.bfloat16)
    with torch.no_grad():
        score = float(loaded(torch.tensor([PROBE])).logits)
    assert score == pytest.approx(engine.probe(PROBE)[-1], abs=0.02)
    assert abs(score) > 0.02


def test_architecture_without_a_plain_head_is_refused(model_dir, tmp_path):
    from transformers import CohereConfig

    CohereConfig(vocab_size=86).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="transformers has no sequence classification for it"):
        empty_classifier(str(tmp_path), {"score.weight": (1, 64)})
    with pytest.raises(ModelError, match=r"LlamaForSequenceClassification and a scorer differ in model\.embed_tokens"):
        empty_classifier(str(model_dir), {"score.weight": (1, 64)})
