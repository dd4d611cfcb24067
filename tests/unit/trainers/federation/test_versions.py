"""Global versions as workers and a coordinator that starts again see them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipelines.local.tiny_model import build_tiny_model
from schemas.errors import ModelError, StateError
from schemas.federating import FederationConfig
from schemas.lora import ADAPTER_CONFIG_NAME, ADAPTER_NAME, LoraConfig, adapter_shapes
from schemas.manifests import Manifest
from trainers.federation.versions import Versions
from transforms.generation.worker.verify import read_expectation


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def versions(tmp_path, model, **changes):
    return Versions(FederationConfig(store=str(tmp_path / "store"), model=str(model), **changes))


def verified(tmp_path, model, announced, lora=None):
    """What a worker makes of a version that was announced."""
    directory = tmp_path / "store" / "weights" / f"{announced.version:08d}"
    manifest = Manifest.decode((directory / "MANIFEST.json").read_bytes(), announced.manifest_sha256)
    return read_expectation(model, 256, *([lora] if lora else [])).check(announced, directory, manifest)


def test_a_worker_takes_a_global_version_with_its_probe(tmp_path, model):
    store = versions(tmp_path, model)
    layout, row = store.initial()
    first = store.write(1, 0, 1, layout, row)
    second = store.write(2, 1, 1, layout, row + np.float32(0.01))
    probes = [verified(tmp_path, model, announced).probe for announced in (first, second)]
    assert len(probes[0].logprobs) > 10
    assert probes[0].difference(list(probes[1].logprobs)) > 1e-4, "each version has a probe of its own"
    assert np.array_equal(store.read(second)[1], row + np.float32(0.01))


def test_a_worker_takes_a_global_adapter(tmp_path, model):
    lora = LoraConfig(rank=2, target_modules=("q_proj",))
    shapes = {name: tensor.shape for name, tensor in load_file(model / "model.safetensors").items()}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    tensors = {name: np.full(shape, 0.1, dtype=np.float32) for name, shape in adapter_shapes(lora, shapes).items()}
    save_file(tensors, adapter / ADAPTER_NAME)
    (adapter / ADAPTER_CONFIG_NAME).write_bytes(lora.encode(model.name))
    with pytest.raises(ModelError, match="is an adapter, and base is empty"):
        versions(tmp_path, adapter)
    store = versions(tmp_path, adapter, base=str(model))
    layout, row = store.initial()
    announced = store.write(1, 0, 1, layout, row)
    found = verified(tmp_path, model, announced, lora)
    assert found.adapter is not None
    plain = versions(tmp_path / "plain", model)
    without = verified(tmp_path / "plain", model, plain.write(1, 0, 1, *plain.initial())).probe
    assert found.probe.difference(list(without.logprobs)) > 1e-5, "the adapter is on when its probe is computed"


def test_a_version_that_was_changed_is_not_gone_on_from(tmp_path, model):
    store = versions(tmp_path, model)
    announced = store.write(1, 0, 1, *store.initial())
    file = tmp_path / "store/weights/00000001/model.safetensors"
    value = bytearray(file.read_bytes())
    value[-1] ^= 1
    file.write_bytes(value)
    with pytest.raises(StateError, match=r"model\.safetensors has"):
        store.read(announced)
    file.parent.joinpath("MANIFEST.json").unlink()
    with pytest.raises(StateError, match="has no manifest; restore"):
        store.read(announced)


def test_the_servers_state_comes_back_or_is_refused(tmp_path, model):
    store = versions(tmp_path, model)
    state = {"first": np.float32([1, 2]), "second": np.float32([3, 4])}
    digest = store.write_state(7, state)
    assert {name: row.tolist() for name, row in store.read_state(7, digest).items()} == {
        "first": [1, 2], "second": [3, 4]}  # fmt: skip
    assert store.write_state(8, {}) is None
    with pytest.raises(StateError):
        store.read_state(7, "0" * 64)
    store.prune(8)
    with pytest.raises(StateError, match="restore the federation's store"):
        store.read_state(7, digest)


def test_without_a_model_there_is_no_first_version(tmp_path):
    with pytest.raises(ModelError, match=r"has no \*.safetensors, and the federation has no version yet"):
        versions(tmp_path, tmp_path).initial()


def test_what_is_said_of_a_version_is_what_it_is(tmp_path, model):
    store = versions(tmp_path, model)
    announced = store.write(3, 2, 5, *store.initial())
    assert (announced.version, announced.step, announced.generation, announced.dtype) == (3, 2, 5, "float32")
    facts = json.loads((tmp_path / "store/weights/00000003/MANIFEST.json").read_text())["facts"]
    assert (facts["kind"], facts["version"], facts["step"]) == ("weights", 3, 2)
    assert store.newest() == 3
