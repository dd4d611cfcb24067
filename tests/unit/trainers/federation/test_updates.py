"""Files of updates: the same bytes for the same update, and everything that can be wrong with them."""

import hashlib
import json
import os

import numpy as np
import pytest
from fsspec.core import url_to_fs
from safetensors.numpy import save

from schemas.errors import RecordError
from schemas.federation import SiteUpdate, update_path
from schemas.manifests import FileEntry, Manifest, sha256
from trainers.federation import updates
from trainers.federation.codecs import encode
from trainers.federation.layout import Layout

TENSORS = {"b": np.float32([0.5, -0.5]), "w": np.arange(6, dtype=np.float32).reshape(3, 2)}
LAYOUT = Layout.of(TENSORS)


def announced(**changes):
    told = {"site": "north", "sequence": 7, "base_version": 1, "samples": 1, "tokens": 1, "steps": 1, "bytes": 0,
            "manifest_sha256": "0" * 64}  # fmt: skip
    return SiteUpdate(**(told | changes))


@pytest.fixture
def written(tmp_path):
    return updates.write(str(tmp_path), announced(), encode("full", TENSORS)[0])


def read(tmp_path, update):
    return updates.read(*url_to_fs(str(tmp_path)), update, LAYOUT)


def test_what_is_written_is_read(tmp_path, written):
    assert read(tmp_path, written).tolist() == [0.5, -0.5, 0, 1, 2, 3, 4, 5]
    assert written.bytes == (tmp_path / "updates/north/00000007/update.safetensors").stat().st_size


def test_a_site_that_writes_again_writes_the_same(tmp_path, written):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = updates.write(str(tmp_path), announced(), encode("full", TENSORS)[0])
    assert again == written.model_copy(update={"published_at": again.published_at})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def with_manifest(tmp_path, update, value, **facts):
    """Other bytes, properly announced."""
    directory = tmp_path / "updates/north/00000007"
    told = {"kind": "update", "site": "north", "sequence": 7, "base_version": 1, "codec": "full"} | facts
    entry = FileEntry(name="update.safetensors", size=len(value), sha256=sha256(value))
    manifest = Manifest(files=(entry,), facts=told).encode()
    (directory / "update.safetensors").write_bytes(value)
    (directory / "MANIFEST.json").write_bytes(manifest)
    return update.model_copy(update={"manifest_sha256": sha256(manifest)})


def test_an_update_of_another_site_or_base_is_not_believed(tmp_path, written):
    value = (tmp_path / "updates/north/00000007/update.safetensors").read_bytes()
    for facts in ({"site": "south"}, {"sequence": 6}, {"base_version": 2}, {"codec": "int8"}):
        with pytest.raises(RecordError, match=f"its {next(iter(facts))} is"):
            read(tmp_path, with_manifest(tmp_path, written, value, **facts))


@pytest.mark.parametrize(
    ("value", "reason", "said"),
    [
        (b"", "bad_manifest", "cannot be read"),
        (b"\xff" * 100, "bad_manifest", "cannot be read"),
        (save({"b": TENSORS["b"]}), "wrong_shape", "w is missing"),
        (save({**TENSORS, "v": TENSORS["b"]}), "wrong_shape", "v is unknown"),
        (save({**TENSORS, "b": np.float64([1, 2])}), "wrong_shape", "b is float64, expected float32"),
        (b"\0" * (2 << 20), "wrong_shape", "expected at most"),
    ],
)
def test_bytes_that_are_no_update_are_refused(tmp_path, written, value, reason, said):
    with pytest.raises(RecordError, match=said) as raised:
        read(tmp_path, with_manifest(tmp_path, written, value))
    assert raised.value.reason == reason


def test_a_dtype_that_numpy_does_not_have_is_refused(tmp_path, written):
    import torch
    from safetensors.torch import save as save_torch

    value = save_torch({name: torch.from_numpy(tensor).bfloat16() for name, tensor in TENSORS.items()})
    with pytest.raises(RecordError) as raised:
        read(tmp_path, with_manifest(tmp_path, written, value))
    assert raised.value.reason in {"bad_manifest", "wrong_shape"}


def test_files_that_are_gone_cut_or_flipped_are_refused(tmp_path, written):
    file = tmp_path / "updates/north/00000007/update.safetensors"
    value = file.read_bytes()
    for broken in (value[:-1], value + b"x", value[:-2] + b"??"):
        file.write_bytes(broken)
        with pytest.raises(RecordError, match="not the announced ones"):
            read(tmp_path, written)
    file.unlink()
    with pytest.raises(RecordError, match=r"update.safetensors is missing"):
        read(tmp_path, written)
    (file.parent / "MANIFEST.json").write_text(json.dumps({"files": []}))
    with pytest.raises(RecordError, match="manifest has sha256"):
        read(tmp_path, written)


def test_a_pipe_or_a_directory_is_no_file(tmp_path, written):
    file = tmp_path / "updates/north/00000007/update.safetensors"
    file.unlink()
    for make in (os.mkfifo, os.mkdir):
        make(file)
        with pytest.raises(RecordError, match=r"update.safetensors is no file"):
            read(tmp_path, written)
        file.unlink() if file.is_fifo() else file.rmdir()


@pytest.mark.parametrize("piece_bytes", [1, 8 << 20])
def test_no_site_chooses_how_much_is_hashed(tmp_path, written, piece_bytes):
    directory = tmp_path / "updates/north/00000007"
    manifest = Manifest.model_validate_json((directory / "MANIFEST.json").read_bytes())
    (entry,) = manifest.files
    value = (directory / "update.safetensors").read_bytes()
    digests = [hashlib.sha256(value[at : at + piece_bytes]).digest() for at in range(0, len(value), piece_bytes)]
    in_pieces = entry.model_copy(update={"piece_bytes": piece_bytes, "sha256": sha256(b"".join(digests))})
    told = manifest.model_copy(update={"files": (in_pieces,)}).encode()
    (directory / "MANIFEST.json").write_bytes(told)
    with pytest.raises(RecordError, match="is hashed in pieces") as raised:
        read(tmp_path, written.model_copy(update={"manifest_sha256": sha256(told)}))
    assert raised.value.reason == "bad_manifest"


def test_sweeping_removes_what_the_log_is_done_with_and_nothing_else(tmp_path):
    for name in ("north/00000001", "north/00000002", "north/00000003", "north/notes", "south/00000001"):
        (tmp_path / "updates" / name).mkdir(parents=True)
    updates.sweep(*url_to_fs(str(tmp_path)), {"north": 2, "gone": 7})
    left = sorted(str(path.relative_to(tmp_path / "updates")) for path in tmp_path.glob("updates/*/*"))
    assert left == ["north/00000003", "north/notes", "south/00000001"]


def test_removing_what_is_gone_is_nothing(tmp_path, written):
    for _ in range(2):
        updates.remove(*url_to_fs(str(tmp_path)), "north", 7)
    assert not (tmp_path / update_path(".", "north", 7)).exists()
