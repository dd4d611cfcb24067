"""Adapters: only they are trained, they begin as nothing, and added to the model they are what peft makes of them."""

import json
from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file

from schemas.config import WeightsConfig, validate
from schemas.errors import ConfigError, ModelError, StateError
from schemas.lora import LoraConfig, adapter_shapes, base_sha256
from schemas.manifests import Manifest
from schemas.weights import version_path
from tests.support.samples import draw_examples
from tests.support.trajectories import shared_ranks
from trainers.aggregation import weigh
from trainers.checkpoint import require_fit
from trainers.engine import Engine, Work
from trainers.lora import Adapter, adapter_of, add_adapter, merge
from trainers.packing import share_out
from trainers.policy import load_model
from trainers.publish import Facts, WeightStore
from trainers.updates import fingerprint_of

LORA = {"rank": 4, "alpha": 8}
PROBE = list(range(6, 38))
WEIGHTS = "model.safetensors"


def make_config(model_dir, stage=0, **learner):
    learner = {"lora": LORA, "zero_stage": stage, **learner}
    return validate({"model": {"path": str(model_dir)}, "learner": learner}, "test")


def make_engine(model_dir, stage=0, dtype="float32", saved=None, **learner):
    return Engine(make_config(model_dir, stage, **learner), dtype, shared_ranks(), saved)


def train(engine, seed=0):
    packs = share_out(weigh(draw_examples(11, seed), "token_mean", 1), 1, 64)[0]
    outcome = engine.train(Work([packs], 1e-2))
    assert outcome.applied
    return outcome


def adapted(model_dir, seed=1):
    """A model with an adapter that does something."""
    causal = load_model(str(model_dir), torch.float32)
    add_adapter(causal, model_dir, LoraConfig(**LORA), seed)
    torch.manual_seed(seed)
    for tensor in adapter_of(dict(causal.named_parameters())).values():
        tensor.normal_(std=0.3)
    return causal


def test_an_adapter_begins_as_nothing_and_as_its_seed_says(model_dir):
    plain = load_model(str(model_dir), torch.float32)
    made = []
    for seed in (1, 1, 2):
        causal = load_model(str(model_dir), torch.float32)
        state = torch.get_rng_state()
        add_adapter(causal, model_dir, LoraConfig(**LORA), seed)
        assert torch.equal(torch.get_rng_state(), state)
        made.append(adapter_of(dict(causal.named_parameters())))
        tokens = torch.tensor([PROBE])
        assert torch.equal(causal(tokens, attention_mask=None).logits, plain(tokens, attention_mask=None).logits)
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert any(not torch.equal(made[0][name], made[2][name]) for name in made[0])


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_only_the_adapter_is_trained_alike_at_every_stage(model_dir, stage):
    engine = make_engine(model_dir, stage, activation_checkpointing=stage == 2)
    whole = make_engine(model_dir)
    for _ in range(3):
        assert train(engine).grad_norm == pytest.approx(train(whole).grad_norm, abs=1e-6)
    published, expected = engine.state_dict(), whole.state_dict()
    assert {name: tuple(each.shape) for name, each in published.items()} == adapter_shapes(
        LoraConfig(**LORA),
        {name: tuple(each.shape) for name, each in load_file(model_dir / WEIGHTS).items()},
    )
    for name, tensor in published.items():
        torch.testing.assert_close(tensor.cpu(), expected[name].cpu(), atol=1e-5, rtol=0)
        assert tensor.abs().max() > 0, name
    engine.check(PROBE)
    if stage < 3:
        kept = dict(engine._trained.language_model.named_parameters())
        for name, tensor in load_file(model_dir / WEIGHTS).items():
            mine = kept.get(name, kept.get(name.replace(".weight", ".base_layer.weight")))
            assert torch.equal(mine.cpu(), tensor), name


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (3, "float32"), (0, "bfloat16"), (2, "bfloat16")])
def test_a_checkpoint_holds_the_adapter_alone_and_goes_on_to_the_bit(model_dir, tmp_path, stage, dtype):
    engine = make_engine(model_dir, stage, dtype)
    train(engine)
    engine.save(tmp_path)
    expected = train(engine)
    saved = [name for file in (tmp_path / "state").glob("*.safetensors") for name in load_file(file)]
    assert len(saved) == 3 * 28
    assert all(".lora_" in name for name in saved)
    other = make_engine(model_dir, stage, dtype, saved=tmp_path)
    assert train(other) == expected
    before = other.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.state_dict().items())
    assert {str(tensor.dtype) for tensor in before.values()} == {f"torch.{dtype}"}


@pytest.mark.parametrize("stage", [0, 3])
def test_the_reference_is_the_same_model_without_its_adapter(model_dir, stage):
    objective = {"kl_coefficient": 0.1}
    engine = make_engine(model_dir, stage, objective=objective)
    assert train(engine).figures["kl"] == pytest.approx(0.0, abs=1e-6)
    apart = make_engine(model_dir, stage, objective=objective)
    train(apart)
    apart._trained._reference = make_engine(model_dir)._trained.module
    apart._trained._lora = LoraConfig()
    found = train(engine).figures["kl"]
    assert found > 1e-4
    assert found == pytest.approx(train(apart).figures["kl"], abs=1e-6)


def test_a_value_head_is_trained_beside_it_and_not_published(model_dir, tmp_path):
    engine = make_engine(model_dir, objective={"name": "ppo"})
    train(engine)
    engine.save(tmp_path)
    saved = {name for file in (tmp_path / "state").glob("*.safetensors") for name in load_file(file)}
    assert len(saved) == 3 * 29
    assert "weights/value_head.weight" in saved
    assert engine._trained.module.value_head.weight.abs().max() > 0
    assert all(".lora_" in name for name in engine.state_dict())


def test_peft_reads_what_is_published_and_merging_gives_the_same_model(model_dir, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config, causal = make_config(model_dir), adapted(model_dir)
    facts = Facts(3, 2, "float32", Adapter.of(config))
    with closing(WeightStore(WeightsConfig(root=str(tmp_path)))) as store:
        digest = store.write(adapter_of(dict(causal.named_parameters())), facts, lambda: {"token_ids": []})
    directory = tmp_path / version_path("", 3).lstrip("/")
    manifest = Manifest.decode((directory / "MANIFEST.json").read_bytes(), digest)
    assert [entry.name for entry in manifest.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert manifest.facts["kind"] == "adapter"
    assert manifest.facts["base_sha256"] == base_sha256(model_dir)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), directory)
    expected = theirs.merge_and_unload().state_dict()
    (file,) = merge(model_dir, directory, config.learner.lora, torch.float32, tmp_path)
    merged = load_file(file)
    assert merged.keys() == load_file(model_dir / WEIGHTS).keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)


def test_a_checkpoint_fits_the_same_adapter_to_the_same_weights_only(model_dir, tmp_path):
    def fingerprint(**learner):
        config = make_config(model_dir, **learner)
        return fingerprint_of(config, "float32", Adapter.of(config))

    saved = fingerprint()
    require_fit(saved, fingerprint(), tmp_path)
    for lora, words in (({"rank": 8}, "lora.rank is 4 in the checkpoint and 8 now"),
                        ({"rank": 0}, "lora.rank is 4 in the checkpoint and None now")):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            require_fit(saved, fingerprint(lora=LORA | lora), tmp_path)
    with pytest.raises(ConfigError, match="sha256 of the model's weights"):
        require_fit(saved | {"sha256 of the model's weights": "0" * 64}, saved, tmp_path)


def test_whole_weights_are_not_taken_for_an_adapter(model_dir, tmp_path):
    make_engine(model_dir, lora={}).save(tmp_path)
    with pytest.raises(StateError, match=r"lacks weights/.*lora_A"):
        make_engine(model_dir, saved=tmp_path)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["c_attn"], "the model has no c_attn; it has down_proj, embed_tokens, gate_proj"),
        (["embed_tokens"], "model.embed_tokens is Embedding, expected a linear layer"),
    ],
)
def test_layers_that_the_model_does_not_have_are_named(model_dir, targets, words):
    with pytest.raises(ModelError, match=words):
        make_engine(model_dir, lora=LORA | {"target_modules": targets})


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"learner": {"lora": {"rank": 513}}}, "learner.lora.rank = 513"),
        ({"learner": {"lora": {"rank": -1}}}, "learner.lora.rank = -1"),
        ({"learner": {"lora": {"rank": 4, "target_modules": []}}}, "expected names of linear layers"),
        ({"learner": {"lora": LORA}, "weights": {"transport": "nccl"}}, "weights.transport = 'nccl'"),
        ({"learner": {"lora": LORA}, "weights": {"delta": True}}, "weights.delta = true: an adapter"),
        ({"learner": {"lora": {"ranks": 4}}}, "unknown key learner.lora.ranks; did you mean rank?"),
    ],
)
def test_settings_that_contradict_an_adapter_are_named(tree, words):
    with pytest.raises(ConfigError, match=words):
        validate(tree, "test")


def test_the_configuration_is_what_peft_knows(tmp_path):
    from peft import LoraConfig as PeftConfig

    (tmp_path / "adapter_config.json").write_bytes(LoraConfig(**LORA).encode("tiny"))
    read = PeftConfig.from_pretrained(tmp_path)
    assert (read.r, read.lora_alpha, read.base_model_name_or_path, read.bias) == (4, 8, "tiny", "none")
    assert json.loads(LoraConfig(**LORA).encode("tiny"))["target_modules"] == sorted(read.target_modules)
