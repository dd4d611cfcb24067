"""What is refused before an engine is paused for it."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from schemas.errors import ModelError, RecordError
from schemas.manifests import MANIFEST_NAME, sha256
from schemas.weights import version_path
from tests.support.weights import write_snapshot, write_version
from transforms.generation.worker.store import WeightStore
from transforms.generation.worker.verify import Probe, first_nonfinite, read_expectation

PROBE = {"token_ids": [1, 5, 7], "logprobs": [-2.0, -0.5]}


def make_tensors(**changes):
    tensors = {
        "model.embed_tokens.weight": torch.arange(12, dtype=torch.float32).reshape(4, 3) + 1,
        "model.norm.weight": torch.ones(3),
    }
    return tensors | changes


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"vocab_size": 8, "tie_word_embeddings": True}))
    save_file(make_tensors(), directory / "model.safetensors")
    return directory


@pytest.fixture
def root(tmp_path):
    return tmp_path / "weights"


def check(root, model, announced):
    with WeightStore(str(root)) as store:
        directory, manifest = store.fetch(announced)
        return read_expectation(model, 16).check(announced, directory, manifest)


def refusal(root, model, announced):
    with pytest.raises(RecordError) as caught:
        check(root, model, announced)
    return caught.value


def file_of(root, version=1):
    return root / version_path("", version).lstrip("/") / "model.safetensors"


def rewrite(file, change):
    value = bytearray(file.read_bytes())
    change(value)
    file.write_bytes(value)


def test_a_whole_version_is_verified_and_names_its_files(root, model):
    announced = write_version(root, 1, make_tensors(), probe=PROBE)
    verified = check(root, model, announced)
    assert verified.files == (str(file_of(root).resolve()),)
    assert verified.probe == Probe(token_ids=(1, 5, 7), logprobs=(-2.0, -0.5))


def test_a_flipped_bit_is_refused(root, model):
    announced = write_version(root, 1, make_tensors(), probe=PROBE)
    rewrite(file_of(root), lambda value: value.__setitem__(-1, value[-1] ^ 1))
    assert refusal(root, model, announced).reason == "bad_files"


def test_a_zeroed_tail_is_refused(root, model):
    announced = write_version(root, 1, make_tensors(), probe=PROBE)
    rewrite(file_of(root), lambda value: value.__setitem__(slice(-8, None), bytes(8)))
    assert refusal(root, model, announced).reason == "bad_files"


def test_a_truncated_file_is_refused(root, model):
    announced = write_version(root, 1, make_tensors(), probe=PROBE)
    rewrite(file_of(root), lambda value: value.__delitem__(slice(-4, None)))
    assert refusal(root, model, announced).reason == "bad_files"


def test_a_missing_file_is_refused(root, model):
    announced = write_version(root, 1, make_tensors(), probe=PROBE)
    file_of(root).unlink()
    assert refusal(root, model, announced).reason == "bad_files"


def test_a_missing_version_has_vanished(root, model):
    announced = write_version(root, 1, make_tensors(), probe=PROBE)
    assert refusal(root, model, announced.model_copy(update={"version": 2})).reason == "vanished"


def test_a_manifest_with_another_hash_is_refused(root, model):
    announced = write_version(root, 1, make_tensors(), probe=PROBE)
    rewrite(file_of(root).parent / MANIFEST_NAME, lambda value: value.extend(b"\n"))
    assert refusal(root, model, announced).reason == "bad_manifest"


def test_the_manifest_of_another_version_is_refused(root, model):
    announced = write_version(root, 1, make_tensors(), probe=PROBE, facts={"version": 7})
    assert refusal(root, model, announced).reason == "bad_manifest"


@pytest.mark.parametrize("facts", [{"kind": "checkpoint"}, {"dtype": "bfloat16"}, {"version": None}, {"version": "1"}])
def test_a_manifest_of_something_else_is_refused(root, model, facts):
    announced = write_version(root, 1, make_tensors(), probe=PROBE, facts=facts)
    assert refusal(root, model, announced).reason == "bad_manifest"


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../00000002/model.safetensors", "a/../../x", "./model.safetensors", "file:///x", "a\\b"]
)
def test_a_path_in_the_file_list_is_refused_before_anything_is_opened(root, model, name):
    announced = write_version(root, 1, make_tensors(), probe=PROBE)
    path = file_of(root).parent / MANIFEST_NAME
    manifest = json.loads(path.read_bytes())
    manifest["files"][0]["name"] = name
    path.write_text(json.dumps(manifest))
    announced = announced.model_copy(update={"manifest_sha256": sha256(path.read_bytes())})
    assert refusal(root, model, announced).reason == "bad_manifest"


def test_a_file_beside_those_of_the_manifest_is_refused(root, model):
    announced = write_version(root, 1, make_tensors(), probe=PROBE)
    (file_of(root).parent / ".nfs0001").write_bytes(b"left by a file system")
    assert check(root, model, announced)
    (file_of(root).parent / "more.safetensors").write_bytes(b"")
    refused = refusal(root, model, announced)
    assert refused.reason == "bad_files"
    assert "more.safetensors is not in the manifest" in refused.detail


def test_a_directory_that_became_a_link_is_refused(root, model):
    announced = write_version(root, 1, make_tensors(), probe=PROBE)
    directory = file_of(root).parent
    directory.rename(root / "elsewhere")
    directory.symlink_to(root / "elsewhere")
    refused = refusal(root, model, announced)
    assert refused.reason == "bad_files"
    assert "symbolic link" in refused.detail


def test_a_file_that_became_a_link_is_refused(root, model):
    announced = write_version(root, 1, make_tensors(), probe=PROBE)
    file_of(root).rename(root / "elsewhere")
    file_of(root).symlink_to(root / "elsewhere")
    assert refusal(root, model, announced).reason == "bad_files"


def test_a_file_removed_after_it_was_hashed_is_refused(root, model, monkeypatch):
    announced = write_version(root, 1, make_tensors(), probe=PROBE)
    monkeypatch.setattr("transforms.generation.worker.verify._check_shapes", lambda *_: file_of(root).unlink())
    assert refusal(root, model, announced).reason == "bad_tensors"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "int32", "bool", "float8_e4m3fn"])
def test_tensors_of_another_dtype_than_announced_are_refused(root, model, dtype):
    norm = torch.ones(3).to(getattr(torch, dtype))
    refused = refusal(root, model, write_version(root, 1, make_tensors(**{"model.norm.weight": norm}), probe=PROBE))
    assert refused.reason == "bad_tensors"
    assert "model.norm.weight have dtype" in refused.detail


def test_16_bit_versions_may_keep_some_tensors_in_float32_but_not_all(root, model):
    embeddings = make_tensors()["model.embed_tokens.weight"].bfloat16()
    mixed = make_tensors(**{"model.embed_tokens.weight": embeddings})
    assert check(root, model, write_version(root, 1, mixed, probe=PROBE, dtype="bfloat16"))
    assert refusal(root, model, write_version(root, 2, make_tensors(), probe=PROBE, dtype="bfloat16"))
    assert (
        refusal(root, model, write_version(root, 3, make_tensors(), probe=PROBE, dtype="f32")).reason == "bad_tensors"
    )


def test_missing_tensors_are_refused_by_name(root, model):
    tensors = make_tensors()
    del tensors["model.norm.weight"]
    assert refusal(root, model, write_version(root, 1, tensors, probe=PROBE)).detail.startswith(
        "missing model.norm.weight, unknown none"
    )


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(root, model, number):
    norm = torch.tensor([1.0, number, 1.0])
    announced = write_version(root, 1, make_tensors(**{"model.norm.weight": norm}), probe=PROBE)
    refused = refusal(root, model, announced)
    assert refused.reason == "nonfinite"
    assert "model.norm.weight" in refused.detail


def test_a_wrong_shape_is_refused_with_both_shapes(root, model):
    announced = write_version(root, 1, make_tensors(**{"model.norm.weight": torch.ones(4)}), probe=PROBE)
    refused = refusal(root, model, announced)
    assert refused.reason == "bad_tensors"
    assert refused.detail == "model.norm.weight has shape (4,), expected (3,)"


def test_an_unknown_and_a_missing_name_are_refused_by_name(root, model):
    tensors = make_tensors()
    tensors["model.norm.bias"] = tensors.pop("model.norm.weight")
    refused = refusal(root, model, write_version(root, 1, tensors, probe=PROBE))
    assert refused.reason == "bad_tensors"
    assert refused.detail == "missing model.norm.weight, unknown model.norm.bias"


def test_a_head_that_is_tied_may_not_be_published(root, model):
    tensors = make_tensors(**{"lm_head.weight": torch.ones(4, 3)})
    assert refusal(root, model, write_version(root, 1, tensors, probe=PROBE)).reason == "bad_tensors"


def test_a_tied_head_in_the_model_directory_is_not_expected_of_versions(root, model):
    save_file(make_tensors(**{"lm_head.weight": torch.ones(4, 3)}), model / "model.safetensors")
    assert check(root, model, write_version(root, 1, make_tensors(), probe=PROBE))


def test_a_head_that_is_not_tied_is_expected_of_versions(root, model):
    (model / "config.json").write_text(json.dumps({"vocab_size": 8, "tie_word_embeddings": False}))
    save_file(make_tensors(**{"lm_head.weight": torch.ones(4, 3)}), model / "model.safetensors")
    assert refusal(root, model, write_version(root, 1, make_tensors(), probe=PROBE)).reason == "bad_tensors"


@pytest.mark.parametrize(
    "probe",
    [
        None,
        {"token_ids": [1], "logprobs": []},
        {"token_ids": [1, 2], "logprobs": [-1.0, -1.0]},
        {"token_ids": [1, 8], "logprobs": [-1.0]},
        {"token_ids": [-1, 2], "logprobs": [-1.0]},
        {"token_ids": [1] * 16, "logprobs": [-1.0] * 15},
    ],
    ids=["none", "one token", "lengths differ", "beyond the vocabulary", "negative", "longer than the engine takes"],
)
def test_a_probe_that_cannot_be_asked_is_refused(root, model, probe):
    assert refusal(root, model, write_version(root, 1, make_tensors(), probe=probe)).reason == "bad_probe"


def test_difference_is_the_mean_absolute_one():
    probe = Probe(token_ids=(1, 5, 7), logprobs=(-2.0, -0.5))
    assert probe.difference([-2.5, -0.25]) == pytest.approx(0.375)


@pytest.mark.parametrize("logprobs", [[-2.0], [-2.0, math.nan], [-math.inf, -0.5]])
def test_difference_to_what_is_no_number_is_infinite(logprobs):
    assert Probe(token_ids=(1, 5, 7), logprobs=(-2.0, -0.5)).difference(logprobs) == math.inf


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_an_incomplete_model_directory_is_the_users_to_mend(model, file):
    (model / file).unlink()
    with pytest.raises(ModelError, match=str(model)):
        read_expectation(model, 16)


def test_a_cut_model_file_is_the_users_to_mend(model):
    rewrite(model / "model.safetensors", lambda value: value.__delitem__(slice(-4, None)))
    with pytest.raises(ModelError, match="download or convert it again"):
        read_expectation(model, 16)


def test_numbers_whose_sum_overflows_are_finite():
    large = torch.full((1000,), 3e38)
    assert first_nonfinite({"half": torch.full((1000,), 6e4).half(), "large": large}) is None
    large[7] = math.nan
    assert first_nonfinite({"small": torch.ones(2), "large": large}) == "large"


# ------------------------------------------------------------ through memory


def test_a_version_through_memory_names_its_texts_and_no_files(root, model):
    verified = check(root, model, write_snapshot(root, 1, make_tensors(), probe=PROBE))
    source, layout = verified.snapshot
    assert verified.files == ()
    assert json.loads(source)["kind"] == "nccl"
    assert len(json.loads(layout)["tensors"]) == 2


@pytest.mark.parametrize("name", ["layout.json", "SOURCE.json"])
def test_texts_that_were_changed_or_lost_are_refused(root, model, name):
    announced = write_snapshot(root, 1, make_tensors(), probe=PROBE)
    path = file_of(root).parent / name
    path.write_text(path.read_text().replace('"', "'"))
    assert refusal(root, model, announced).reason in ("bad_files", "bad_source")
    path.unlink()
    assert refusal(root, model, announced).reason in ("bad_files", "bad_source")


def test_tensors_through_memory_must_be_the_models(root, model):
    short = {"model.embed_tokens.weight": make_tensors()["model.embed_tokens.weight"]}
    refused = refusal(root, model, write_snapshot(root, 1, short, probe=PROBE))
    assert refused.detail == "missing model.norm.weight, unknown none"
    other = make_tensors(**{"model.norm.weight": torch.ones(4)})
    assert "has shape (4,)" in refusal(root, model, write_snapshot(root, 2, other, probe=PROBE)).detail
    half = {name: tensor.half() for name, tensor in make_tensors().items()}
    assert "have dtype F16" in refusal(root, model, write_snapshot(root, 3, half, probe=PROBE)).detail
