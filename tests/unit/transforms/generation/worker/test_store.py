"""Versions become local, whatever file system they lie on."""

import json
from uuid import uuid4

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from schemas.config import WeightsConfig
from schemas.errors import RecordError
from schemas.manifests import MANIFEST_NAME, sha256, verify
from schemas.snapshots import SOURCE_NAME
from schemas.weights import WeightVersion, version_path
from tests.support.weights import write_snapshot, write_version
from trainers.publish import Facts
from trainers.publish import WeightStore as Publisher
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


# -------------------------------------------------------------------- deltas


def numbers(version):
    tensors = {"w": torch.arange(5000.0)}
    tensors["w"][::500] += version
    return tensors


@pytest.fixture(params=["local", "memory"])
def published(request, tmp_path):
    """Versions 1 to 5, of which 1 is whole and the others are deltas: root, file system, announcements."""
    root = str(tmp_path / "store") if request.param == "local" else f"memory://{uuid4().hex}"
    store = Publisher(WeightsConfig(root=root, delta=True))
    announced = {}
    for version in range(1, 6):
        digest = store.write(numbers(version), Facts(version, version, "float32"), lambda: PROBE)
        announced[version] = WeightVersion(
            version=version, step=version, generation=1, manifest_sha256=digest, dtype="float32", base_model="tiny"
        )
    files, base = fsspec.core.url_to_fs(root)
    return root, (files, base), announced


def rebuilt(store, announced):
    """The files of a version are those that the manifest names, with its hashes."""
    directory, manifest = store.fetch(announced)
    assert sorted(path.name for path in directory.iterdir() if path.suffix == ".safetensors") == ["model.safetensors"]
    verify(fsspec.filesystem("file"), str(directory), manifest)
    return load_file(directory / "model.safetensors")


def test_deltas_are_rebuilt_one_after_the_other(published):
    root, _, announced = published
    with WeightStore(root) as store:
        for version in range(1, 6):
            assert torch.equal(rebuilt(store, announced[version])["w"], numbers(version)["w"])
        kept = store._made
        assert sorted(path.name for path in kept.iterdir()) == ["00000004", "00000005"]
    assert not kept.exists()


def test_a_worker_without_the_base_rebuilds_from_the_last_whole_version(published):
    root, _, announced = published
    with WeightStore(root) as store:
        assert torch.equal(rebuilt(store, announced[5])["w"], numbers(5)["w"])


def test_a_worker_that_missed_a_version_rebuilds_what_it_missed(published):
    root, _, announced = published
    with WeightStore(root) as store:
        rebuilt(store, announced[2])
        assert torch.equal(rebuilt(store, announced[4])["w"], numbers(4)["w"])


def test_a_whole_version_that_is_here_already_is_not_downloaded_again(published, monkeypatch):
    root, (files, _), announced = published
    with WeightStore(root) as store:
        rebuilt(store, announced[1])
        monkeypatch.setattr(type(files), "get_file", None)
        assert torch.equal(rebuilt(store, announced[2])["w"], numbers(2)["w"])


def flip(place, path):
    files, base = place
    value = bytearray(files.cat_file(f"{base}/{path}"))
    value[-1] ^= 1
    files.pipe_file(f"{base}/{path}", bytes(value))


@pytest.mark.parametrize("path", ["00000001/model.safetensors", "00000002/model.safetensors.delta"])
def test_a_damaged_base_or_delta_is_refused(published, path):
    root, place, announced = published
    flip(place, path)
    with WeightStore(root) as store, pytest.raises(RecordError) as caught:
        store.fetch(announced[2])
    assert caught.value.reason == "bad_files"


def test_a_base_that_was_damaged_here_is_not_built_on_twice(published):
    root, _, announced = published
    with WeightStore(root) as store:
        directory, _ = store.fetch(announced[2])
        flip((fsspec.filesystem("file"), str(directory)), "model.safetensors")
        with pytest.raises(RecordError):
            store.fetch(announced[3])
        assert torch.equal(rebuilt(store, announced[4])["w"], numbers(4)["w"])


def test_a_base_that_is_gone_is_a_vanished_version(published):
    root, (files, base), announced = published
    files.rm(version_path(base, 1), recursive=True)
    with WeightStore(root) as store, pytest.raises(RecordError) as caught:
        store.fetch(announced[2])
    assert caught.value.reason == "vanished"


@pytest.mark.parametrize("changes", [{"base": 2}, {"base": 7}, {"base_manifest_sha256": "0" * 64}, {"files": []}])
def test_a_source_that_leads_elsewhere_is_refused(published, changes):
    root, (files, base), announced = published
    path = f"{version_path(base, 2)}/{SOURCE_NAME}"
    files.pipe_file(path, json.dumps(json.loads(files.cat_file(path)) | changes).encode())
    with WeightStore(root) as store, pytest.raises(RecordError) as caught:
        store.fetch(announced[2])
    assert caught.value.reason in ("bad_source", "bad_manifest")


def test_a_remote_version_through_memory_comes_with_its_source(tmp_path):
    announced = write_snapshot(tmp_path / "made", 1, TENSORS, probe=PROBE)
    root = f"memory://{uuid4().hex}"
    fsspec.filesystem("memory").put(str(tmp_path / "made"), root, recursive=True)
    with WeightStore(root) as store:
        directory, _ = store.fetch(announced)
        assert sorted(path.name for path in directory.iterdir()) == ["SOURCE.json", "layout.json"]
