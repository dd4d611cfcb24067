"""Manifests: any change of any byte of any file is found."""

import pytest
from fsspec.implementations.local import LocalFileSystem

from schemas.errors import StateError
from schemas.manifests import FileEntry, Manifest, describe, sha256, verify

FILES = LocalFileSystem()


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights" * 1000)
    return tmp_path


@pytest.fixture
def manifest(directory):
    return Manifest(files=(describe(FILES, str(directory), "model.safetensors"),), facts={"version": 1})


def test_an_untouched_directory_verifies(directory, manifest):
    verify(FILES, str(directory), manifest)
    assert Manifest.decode(manifest.encode(), sha256(manifest.encode())) == manifest


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:5] + b"\0" + b[6:], lambda b: b""]
)
def test_a_damaged_file_is_found(directory, manifest, damage):
    path = directory / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StateError, match="expected 7000"):
        verify(FILES, str(directory), manifest)


def test_a_missing_file_is_found(directory, manifest):
    (directory / "model.safetensors").unlink()
    with pytest.raises(StateError, match="is missing"):
        verify(FILES, str(directory), manifest)


def test_a_manifest_of_another_hash_is_refused(manifest):
    with pytest.raises(StateError, match="expected " + "0" * 64):
        Manifest.decode(manifest.encode(), "0" * 64)
    with pytest.raises(StateError, match="not a manifest"):
        Manifest.decode(b"{}", sha256(b"{}"))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", ".hidden", "a/../b", "a//b", ""])
def test_a_file_name_cannot_leave_the_directory(name):
    with pytest.raises(ValueError, match="name"):
        FileEntry(name=name, size=0, sha256="0" * 64)
