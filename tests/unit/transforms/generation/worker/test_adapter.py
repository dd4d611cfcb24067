"""What is taken for an adapter, and how it comes into every request."""

import json

import pytest
import torch
from safetensors.torch import save_file

from schemas.config import validate
from schemas.errors import ConfigError, ModelError, RecordError, StateError
from schemas.lora import LoraConfig, base_sha256
from schemas.manifests import MANIFEST_NAME, FileEntry, Manifest, sha256
from schemas.weights import WeightVersion
from transforms.generation.worker.adapter import AdapterSlot
from transforms.generation.worker.arguments import parse_arguments
from transforms.generation.worker.engine import VllmEngine
from transforms.generation.worker.store import WeightStore
from transforms.generation.worker.verify import read_expectation

LORA = LoraConfig(rank=2, alpha=4, target_modules=("up_proj",))
MODULE = "model.layers.0.mlp.up_proj"
A, B = (f"base_model.model.{MODULE}.lora_{part}.weight" for part in "AB")
PROBE = {"token_ids": [1, 5, 7], "logprobs": [-2.0, -0.5]}


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"vocab_size": 8}))
    save_file({f"{MODULE}.weight": torch.ones(4, 3), "model.norm.weight": torch.ones(3)},
              directory / "model.safetensors")  # fmt: skip
    return directory


def write(root, model, *, tensors=None, lora=LORA, files=(), **facts):
    """An adapter to the model as a learner publishes it, and its announcement."""
    directory = root / "00000001"
    directory.mkdir(parents=True)
    tensors = {A: torch.ones(2, 3), B: torch.ones(4, 2)} | (tensors or {})
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None},
              directory / "adapter_model.safetensors", metadata={"format": "pt"})  # fmt: skip
    (directory / "adapter_config.json").write_bytes(lora.encode("tiny"))
    for name in files:
        (directory / name).write_bytes(b"x")
    entries = [FileEntry(name=path.name, size=path.stat().st_size, sha256=sha256(path.read_bytes()))
               for path in sorted(directory.iterdir())]  # fmt: skip
    told = {"kind": "adapter", "version": 1, "dtype": "float32", "base_sha256": base_sha256(model), "probe": PROBE}
    value = Manifest(files=tuple(entries), facts=told | facts).encode()
    (directory / MANIFEST_NAME).write_bytes(value)
    return WeightVersion(version=1, step=1, generation=1, manifest_sha256=sha256(value), dtype="float32",
                         base_model="tiny")  # fmt: skip


def check(root, model, announced, lora=LORA):
    with WeightStore(str(root)) as store:
        directory, manifest = store.fetch(announced)
        return read_expectation(model, 16, lora).check(announced, directory, manifest)


def test_an_adapter_to_this_model_is_verified(tmp_path, model):
    verified = check(tmp_path / "weights", model, write(tmp_path / "weights", model))
    assert verified.adapter == (tmp_path / "weights" / "00000001").resolve()
    assert verified.probe.token_ids == (1, 5, 7)


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"kind": "weights"}, "bad_manifest", "'kind': 'weights'"),
        ({"base_sha256": "0" * 64}, "bad_manifest", "base_sha256"),
        ({"lora": LORA.model_copy(update={"alpha": 8})}, "bad_tensors", "by learner.lora"),
        ({"files": ["adapter_model.bin"]}, "bad_files", "adapter_model.bin"),
        ({"tensors": {B: None}}, "bad_tensors", "missing .*lora_B"),
        ({"tensors": {A: torch.ones(3, 3)}}, "bad_tensors", r"has shape \(3, 3\), expected \(2, 3\)"),
        ({"tensors": {B: torch.ones(4, 2, dtype=torch.float16)}}, "bad_tensors", "dtype F16"),
        ({"tensors": {A: torch.full((2, 3), torch.nan)}}, "nonfinite", "lora_A"),
    ],
)
def test_what_is_no_adapter_to_this_model_is_refused(tmp_path, model, changes, reason, words):
    announced = write(tmp_path / "weights", model, **changes)
    with pytest.raises(RecordError, match=words) as refusal:
        check(tmp_path / "weights", model, announced)
    assert refusal.value.reason == reason


def test_a_worker_of_whole_weights_takes_no_adapter(tmp_path, model):
    announced = write(tmp_path / "weights", model)
    with pytest.raises(RecordError, match="'kind': 'adapter'"):
        check(tmp_path / "weights", model, announced, LoraConfig())


def test_a_model_without_the_layers_is_told_at_the_start(model):
    with pytest.raises(ModelError, match="the model has no q_proj, k_proj; it has up_proj"):
        read_expectation(model, 16, LoraConfig(rank=2, target_modules=("q_proj", "k_proj")))


class Client:
    """Notes what it is asked for, and reads an adapter's file when it is told to load it."""

    def __init__(self, *, takes=True) -> None:
        self.loaded, self.requests, self._takes = [], [], takes

    async def add_lora(self, request):
        with open(f"{request.lora_path}/file") as file:
            self.loaded.append((request.lora_int_id, file.read(), request.load_inplace))
        return self._takes

    async def add_request(self, name, *, lora_request=None):
        self.requests.append(lora_request)
        return name


def directory_of(tmp_path, text):
    directory = tmp_path / text
    directory.mkdir()
    (directory / "file").write_text(text)
    return directory


async def test_each_adapter_replaces_the_last_one_and_is_in_every_request_after_it(tmp_path):
    client = Client()
    slot = AdapterSlot(client)
    await client.add_request("before")
    for text in ("first", "second"):
        directory = directory_of(tmp_path, text)
        slot.open(directory)
        assert slot.is_opened
        (directory / "file").unlink()
        await slot.load()
        assert not slot.is_opened
        assert await client.add_request(text, lora_request=None) == text
    assert client.loaded == [(1, "first", True), (1, "second", True)]
    before, first, second = client.requests
    assert before is None
    assert (first.lora_int_id, second.lora_int_id) == (1, 1)
    assert not first.load_inplace
    assert not second.load_inplace


async def test_an_adapter_that_is_gone_is_refused_and_the_last_one_stays(tmp_path):
    client = Client()
    engine = VllmEngine(client)
    await engine.open_adapter(directory_of(tmp_path, "first"))
    await engine._replace()
    with pytest.raises(RecordError, match="the adapter cannot be copied") as refusal:
        await engine.open_adapter(tmp_path / "gone")
    assert refusal.value.reason == "vanished"
    await client.add_request("after")
    assert client.requests[-1].lora_int_id == 1
    assert [text for _, text, _ in client.loaded] == ["first"]


async def test_an_adapter_that_the_engine_does_not_take_is_told(tmp_path):
    slot = AdapterSlot(Client(takes=False))
    slot.open(directory_of(tmp_path, "first"))
    with pytest.raises(StateError, match="did not take the adapter"):
        await slot.load()


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (2, 8), (8, 8), (100, 128), (400, 512)])
def test_the_engine_has_room_for_the_rank_and_for_no_other_layers(rank, room):
    lora = {"rank": rank, "target_modules": ["q_proj", "up_proj"]}
    parsed = parse_arguments(validate({"model": {"path": "/m"}, "learner": {"lora": lora}}, "test"), "float32")
    assert (parsed.enable_lora, parsed.max_loras, parsed.max_lora_rank) == (True, 1, room)
    assert parsed.lora_target_modules == ["q_proj", "up_proj"]


def test_whole_weights_need_no_room_and_adapters_of_others_get_none():
    assert not parse_arguments(validate({"model": {"path": "/m"}}, "test"), "float32").enable_lora
    given = {"model": {"path": "/m"}, "worker": {"engine_args": {"enable_lora": True}}}
    with pytest.raises(ConfigError, match="enable_lora cannot be set here"):
        parse_arguments(validate(given, "test"), "float32")
