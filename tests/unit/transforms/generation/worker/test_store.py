"""Versions become local, whatever file system they lie on."""

import json
from uuid import uuid4

import fsspec
import pytest
import torch

from schemas.errors import RecordError
from schemas.manifests import MANIFEST_NAME, sha256
from schemas.weights import version_path
from tests.support.weights import write_version
from transforms.generation.worker.store import WeightStore

TENSORS = {"w": torch.ones(2)}
PROBE = {"token_ids": [1, 2], "logprobs": [-1.0]}


@pytest.fixture
def remote(tmp_path):
    """Versions 1 to 3 on a file system that is not local, with their announcements."""
    announced = [write_version(tmp_path / "made", version, TENSORS, probe=PROBE) for version in (1, 2, 3)]
    root = f"memory://{uuid4().hex}"
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "made"), root, recursive=True)
    return memory, root, announced


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_local_root_is_read_in_place(tmp_path, prefix):
    announced = write_version(tmp_path, 1, TENSORS, probe=PROBE)
    with WeightStore(f"{prefix}{tmp_path}") as store:
        directory, _ = store.fetch(announced)
    assert str(directory) == version_path(str(tmp_path), 1)
    assert (directory / "model.safetensors").exists()


def test_a_remote_version_is_downloaded(remote, tmp_path):
    _, root, announced = remote
    with WeightStore(root) as store:
        directory, manifest = store.fetch(announced[0])
        copied = (directory / "model.safetensors").read_bytes()
    assert len(copied) == manifest.files[0].size
    assert copied == (tmp_path / "made" / "00000001" / "model.safetensors").read_bytes()


def test_the_cache_holds_two_versions_and_is_removed_at_the_end(remote):
    _, root, announced = remote
    with WeightStore(root) as store:
        directories = [store.fetch(one)[0] for one in announced]
        assert [directory.exists() for directory in directories] == [False, True, True]
    assert not directories[-1].parent.exists()


def test_a_remote_version_that_is_gone_has_vanished(remote):
    memory, root, announced = remote
    memory.rm(version_path(root, 2), recursive=True)
    with WeightStore(root) as store, pytest.raises(RecordError) as caught:
        store.fetch(announced[1])
    assert caught.value.reason == "vanished"


def test_a_remote_file_of_another_size_is_not_downloaded(remote):
    memory, root, announced = remote
    memory.pipe(f"{version_path(root, 2)}/model.safetensors", b"x" * 1000)
    with WeightStore(root) as store, pytest.raises(RecordError) as caught:
        store.fetch(announced[1])
    assert caught.value.reason == "bad_files"


def test_a_version_without_its_manifest_is_not_there(remote):
    memory, root, _ = remote
    with WeightStore(root) as store:
        assert store.has(3)
        memory.rm(f"{version_path(root, 3)}/{MANIFEST_NAME}")
        assert not store.has(3)


@pytest.mark.parametrize(
    "fault", [PermissionError("denied"), OSError(28, "No space left on device"), NotADirectoryError("x")]
)
def test_a_store_that_fails_is_a_refusal(remote, monkeypatch, fault):
    memory, root, announced = remote

    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(type(memory), "get_file", fail)
    with WeightStore(root) as store, pytest.raises(RecordError) as caught:
        store.fetch(announced[1])
    assert caught.value.reason == "unreadable"


def test_a_version_that_is_no_directory_is_a_refusal(tmp_path):
    announced = write_version(tmp_path, 1, TENSORS, probe=PROBE)
    (tmp_path / "00000002").write_bytes(b"")
    with WeightStore(str(tmp_path)) as store, pytest.raises(RecordError) as caught:
        store.fetch(announced.model_copy(update={"version": 2}))
    assert caught.value.reason == "unreadable"


def test_a_remote_file_name_never_leaves_the_cache(remote):
    memory, root, announced = remote
    path = f"{version_path(root, 2)}/{MANIFEST_NAME}"
    manifest = json.loads(memory.cat_file(path))
    manifest["files"][0]["name"] = "../../escaped"
    memory.pipe_file(path, json.dumps(manifest).encode())
    lying = announced[1].model_copy(update={"manifest_sha256": sha256(memory.cat_file(path))})
    with WeightStore(root) as store, pytest.raises(RecordError) as caught:
        store.fetch(lying)
    assert caught.value.reason == "bad_manifest"
