"""Manifests: any change of any byte of any file is found."""

import hashlib

import pytest
from fsspec.implementations.local import LocalFileSystem

from schemas import manifests
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


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(manifests, "PIECE_BYTES", 4)


def entry_of(value):
    digests = [hashlib.sha256(value[begin:end]).digest() for begin, end in manifests.pieces(len(value))]
    return FileEntry.of_pieces("a", len(value), digests)


@pytest.mark.parametrize("value", [b"", b"abcd", b"abcdefghij", b"abcdefgh"])
def test_a_file_in_pieces_is_compared_piece_by_piece(tmp_path, small_pieces, value):
    (tmp_path / "a").write_bytes(value)
    entry = entry_of(value)
    assert entry.piece_bytes == (4 if len(value) > 4 else None)
    assert entry.agrees(value)
    verify(LocalFileSystem(), str(tmp_path), Manifest(files=(entry,)))
    for other in (value + b"x", value[:-1] + b"x" if value else b"x", value[:-1] if value else b"xy"):
        (tmp_path / "a").write_bytes(other)
        assert not entry.agrees(other)
        with pytest.raises(StateError, match=rf"a has {len(other)} bytes with sha256 \w+, expected {len(value)} with"):
            verify(LocalFileSystem(), str(tmp_path), Manifest(files=(entry,)))


def test_pieces_that_change_places_are_noticed(small_pieces):
    assert not entry_of(b"abcdefgh").agrees(b"efghabcd")


def test_an_entry_of_a_whole_file_is_written_as_before():
    assert set(FileEntry(name="a", size=0, sha256="0" * 64).model_dump(mode="json")) == {"name", "size", "sha256"}
