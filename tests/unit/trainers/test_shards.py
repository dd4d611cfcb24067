"""Safetensors files that are written and hashed at once."""

import os

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file, save

from schemas import manifests
from trainers import shards
from trainers.shards import divide, gather

FILES = LocalFileSystem()
TENSORS = {
    "b.weight": torch.arange(15.0).reshape(3, 5).bfloat16(),
    "a": torch.tensor(2.0),
    "c": torch.ones(7).half(),
    "ü": torch.zeros(0, 3),
    "d": torch.arange(12.0).reshape(3, 4).t(),
}


def test_the_bytes_are_those_of_safetensors():
    (shard,) = divide(TENSORS)
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    assert gather(shard) == save(contiguous, metadata={"format": "pt"})
    assert shard.name == "model.safetensors"
    assert shard.number_bytes == 2


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 20)
    monkeypatch.setattr(shards, "_CHUNK_BYTES", 16)
    monkeypatch.setattr(manifests, "PIECE_BYTES", 40)


@pytest.mark.parametrize("local", [True, False])
def test_several_files_hold_all_tensors_and_are_described(tmp_path, small_shards, local):
    files = FILES if local else fsspec.filesystem("file")
    entries = shards.write(files, str(tmp_path), divide(TENSORS), local=local)
    assert [entry.name for entry in entries] == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert all(entry.agrees((tmp_path / entry.name).read_bytes()) for entry in entries)
    assert entries == tuple(shards.describe(shard, gather(shard)) for shard in divide(TENSORS))
    assert {entry.piece_bytes for entry in entries} == {40}
    manifests.verify(FILES, str(tmp_path), manifests.Manifest(files=entries))
    loaded = {name: tensor for entry in entries for name, tensor in load_file(tmp_path / entry.name).items()}
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


def test_the_division_depends_on_names_and_shapes_only(small_shards):
    other = {name: tensor + 1 for name, tensor in reversed(TENSORS.items())}
    assert [list(shard.tensors) for shard in divide(other)] == [list(shard.tensors) for shard in divide(TENSORS)]


def test_there_are_never_more_files_than_processors_could_hash(monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 1)
    assert len(divide({f"{number:03}": torch.ones(4) for number in range(200)})) <= shards._MAX_SHARDS + 1


def test_a_short_write_goes_on_where_it_stopped(tmp_path, monkeypatch):
    put = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, piece, offset: put(file, piece[:3], offset))
    with (tmp_path / "file").open("wb") as file:
        shards._write_all(file.fileno(), memoryview(b"0123456789"), 5)
    assert (tmp_path / "file").read_bytes() == bytes(5) + b"0123456789"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensors_leave_a_gpu_as_they_are():
    on_gpu = {name: tensor.cuda() for name, tensor in TENSORS.items()}
    assert gather(divide(on_gpu)[0]) == gather(divide(TENSORS)[0])
