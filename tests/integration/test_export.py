"""``export``: a version of a run as a directory that transformers loads."""

import json
from contextlib import closing

import pytest
import torch
from kafka import KafkaProducer

from pipelines.cli.main import main
from pipelines.evaluation.measure import write_results
from pipelines.export import export, parse_version
from schemas.config import validate
from schemas.errors import ConfigError, RunError, StateError
from schemas.evals import EvalResult
from schemas.manifests import MANIFEST_NAME, Manifest, sha256
from schemas.weights import WeightVersion
from tests.support.weights import probe_of, state_of, write_snapshot
from trainers import shards
from trainers.publish import Facts, WeightStore


@pytest.fixture
def configure(run_config, model_dir, tmp_path):
    def configured(**weights):
        tree = run_config.model_dump()
        tree["model"] |= {"path": str(model_dir), "dtype": "float32"}
        tree["weights"] |= {"root": str(tmp_path / "weights"), **weights}
        return validate(tree, "test")

    return configured


@pytest.fixture(scope="module")
def models(model_dir):
    """The tiny model after no, one, two and three steps, by version."""
    from transformers import AutoModelForCausalLM

    made = {}
    for version in (1, 2, 3, 4):
        made[version] = AutoModelForCausalLM.from_pretrained(model_dir)
        with torch.no_grad():
            made[version].model.norm.weight += 0.01 * version
    return made


def announce(config, announced):
    with closing(KafkaProducer(**config.kafka.producer_options())) as producer:
        producer.send(config.topics.weights, announced.encode()).get(timeout=60)


def publish(config, models, versions, generation=1):
    store = WeightStore(config.weights)
    for version in versions:
        model = models[version]
        facts = Facts(version=version, step=version - 1, dtype="float32")
        digest = store.write(state_of(model), facts, lambda model=model: probe_of(model))
        announce(config, WeightVersion(version=version, step=version - 1, generation=generation,
                                       manifest_sha256=digest, dtype="float32", base_model="tiny"))  # fmt: skip


def assert_loads(directory, model):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    loaded = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    assert loaded.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "1+1"}], tokenize=False) == "<|user|>1+1"
    assert GenerationConfig.from_pretrained(directory, local_files_only=True).eos_token_id == tokenizer.eos_token_id
    return loaded


def test_the_newest_version_loads_in_transformers_and_every_file_is_vouched_for(configure, models, tmp_path):
    config, target = configure(), tmp_path / "out" / "model"
    publish(config, models, (1, 2))
    done = export(config, "newest", target)
    assert_loads(target, models[2])
    value = (target / MANIFEST_NAME).read_bytes()
    manifest = Manifest.decode(value, done.manifest_sha256)
    assert {entry.name for entry in manifest.files} == {each.name for each in target.iterdir()} - {MANIFEST_NAME}
    for entry in manifest.files:
        assert entry.sha256 == sha256((target / entry.name).read_bytes())
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        entry.name for entry in manifest.files
    }
    assert (manifest.facts["version"], manifest.facts["step"], manifest.facts["run"]) == (2, 1, config.name)
    assert (done.version, done.step, done.files) == (2, 1, len(manifest.files))
    assert json.loads((target / "config.json").read_text())["dtype"] == "float32"


def test_a_version_of_several_files_gets_an_index(configure, models, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 100_000)
    config = configure()
    publish(config, models, (1,))
    export(config, 1, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert_loads(tmp_path / "out", models[1])


def test_a_delta_is_exported_whole(configure, models, tmp_path):
    config = configure(delta=True)
    publish(config, models, (1, 2, 3))
    assert not list((tmp_path / "weights" / "00000003").glob("*.safetensors"))
    export(config, 3, tmp_path / "out")
    assert_loads(tmp_path / "out", models[3])


def test_the_best_version_is_the_one_that_its_evaluation_marked(configure, models, tmp_path):
    config = configure()
    publish(config, models, (1, 2, 3))
    with pytest.raises(RunError, match=r"no version .* is marked as the best one of evaluation 'held-out'"):
        export(config, "best", tmp_path / "out")
    common = {"task": "sums", "metric": "mean_reward", "samples": 4, "temperature": 0}
    for version, value, best in ((1, 0.1, True), (2, 0.9, True), (3, 0.8, False)):
        write_results(config, [EvalResult(version=version, value=value, best=best, **common)])
    assert export(config, "best", tmp_path / "out").version == 2
    assert_loads(tmp_path / "out", models[2])


def test_a_learner_that_was_replaced_has_no_say_in_what_is_newest(configure, models, tmp_path):
    config = configure()
    publish(config, models, (1, 2), generation=2)
    publish(config, models, (3,), generation=1)
    assert export(config, "newest", tmp_path / "out").version == 2


def test_what_is_not_there_is_told_and_leaves_nothing_behind(configure, models, tmp_path):
    config, target = configure(keep=1), tmp_path / "out"
    with pytest.raises(RunError, match="has announced no weights yet"):
        export(config, "newest", target)
    publish(config, models, (1, 2))
    WeightStore(config.weights).prune(announced=2)
    with pytest.raises(RunError, match=r"version 1 is not in the weight store .* any more: the newest 1 and the best"):
        export(config, 1, target)
    with pytest.raises(RunError, match="never announced version 9; it has 1 to 2"):
        export(config, 9, target)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_torn_bytes_are_never_exported(configure, models, tmp_path):
    config = configure()
    publish(config, models, (1,))
    file = tmp_path / "weights" / "00000001" / "model.safetensors"
    value = bytearray(file.read_bytes())
    value[-1] ^= 1
    file.write_bytes(value)
    with pytest.raises(StateError, match=r"version 1 in .* is not what was announced: bad_files"):
        export(config, 1, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_copy_that_went_wrong_is_found_and_removed(configure, models, tmp_path, monkeypatch):
    config = configure()
    publish(config, models, (1,))

    def copy_badly(source, target):
        target.write_bytes(source.read_bytes()[:-1] + b"x")

    monkeypatch.setattr("pipelines.export.shutil.copyfile", copy_badly)
    with pytest.raises(StateError, match=r"model\.safetensors has .* bytes with sha256"):
        export(config, 1, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_weights_that_were_never_written_are_told(configure, models, tmp_path):
    config = configure(transport="nccl")
    root, model = config.weights.root, models[1]
    announce(config, write_snapshot(root, 1, state_of(model), probe=probe_of(model)))
    with pytest.raises(RunError, match="travelled through the memory of the learner"):
        export(config, 1, tmp_path / "out")


def test_nothing_is_written_over(configure, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not an empty directory"):
        export(configure(), "newest", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_text() == "mine"


@pytest.mark.parametrize("text", ["0", "-1", "latest", "1.5", ""])
def test_a_version_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="expected newest, best or the number"):
        parse_version(text)


def test_the_command_prints_what_it_wrote(configure, models, tmp_path, capsys):
    import tomli_w

    config = configure()
    publish(config, models, (1,))
    file = tmp_path / "config.toml"
    file.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    assert main(["export", "--config", str(file), "--version", "1", "--to", str(tmp_path / "out")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["version"], printed["directory"]) == (1, str(tmp_path / "out"))
    for arguments, told in (
        (("--config", str(file)), "--to DIR is missing"),
        (("--to", str(tmp_path / "new")), "exactly one of --run and --config"),
        (("--config", str(file), "--to", str(tmp_path / "new"), "--version", "x"), "--version 'x'"),
    ):
        assert main(["export", *arguments]) == 2
        assert told in capsys.readouterr().err


@pytest.fixture
def adapted(configure, model_dir):
    """A run that trains an adapter, with one version of it, and peft's model of that."""
    from trainers.lora import Adapter, adapter_of, add_adapter
    from trainers.policy import load_model

    tree = configure().model_dump()
    config = validate(tree | {"learner": tree["learner"] | {"lora": {"rank": 4, "alpha": 8}}}, "test")
    causal = load_model(str(model_dir), torch.float32)
    add_adapter(causal, model_dir, config.learner.lora, seed=0)
    adapter = adapter_of(dict(causal.named_parameters()))
    for tensor in adapter.values():
        tensor.normal_(std=0.3)
    with closing(WeightStore(config.weights)) as store:
        digest = store.write(adapter, Facts(1, 0, "float32", Adapter.of(config)), lambda: probe_of_base(model_dir))
    announce(config, WeightVersion(version=1, step=0, generation=1, manifest_sha256=digest, dtype="float32",
                                   base_model=model_dir.name))  # fmt: skip
    return config, adapter


def probe_of_base(model_dir):
    """Any probe will do: an export looks at its form only."""
    from transformers import AutoModelForCausalLM

    return probe_of(AutoModelForCausalLM.from_pretrained(model_dir))


def test_an_adapter_is_added_to_its_model_or_written_as_it_is(adapted, model_dir, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config, adapter = adapted
    assert export(config, "newest", tmp_path / "alone", as_adapter=True).files == 2
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), tmp_path / "alone")
    for name, tensor in adapter.items():
        assert torch.equal(theirs.get_parameter(name.replace(".weight", ".default.weight")), tensor)
    tokens = torch.arange(6, 38)[None]
    expected = theirs.eval()(tokens).logits
    export(config, "newest", tmp_path / "whole")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", local_files_only=True)
    torch.testing.assert_close(loaded(tokens).logits, expected, atol=1e-4, rtol=0)
    plain = AutoModelForCausalLM.from_pretrained(model_dir)
    assert (plain(tokens).logits - expected).abs().max() > 0.1


def test_an_adapter_is_not_added_to_other_weights(adapted, tmp_path):
    from pipelines.local.tiny_model import build_tiny_model

    config, _ = adapted
    other = build_tiny_model(tmp_path / "model", seed=5)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(other)})})
    with pytest.raises(StateError, match=r"is not what was announced: bad_manifest: facts .*base_sha256"):
        export(config, 1, tmp_path / "out")


def test_a_run_of_whole_weights_has_no_adapter_to_write(configure, tmp_path):
    with pytest.raises(ConfigError, match=r"--adapter: run .* trains whole weights"):
        export(configure(), "newest", tmp_path / "out", as_adapter=True)
