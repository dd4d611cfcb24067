"""From a delta and the version it is based on to the exact files of the new version.

    base's files ─┬─apply──► new files ──sha256 of the manifest?──► a directory of the cache
    deltas ───────┘

Whatever is wrong with base or delta shows in the hashes of the new files.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from schemas.deltas import apply
from schemas.errors import RecordError
from schemas.manifests import parallel

if TYPE_CHECKING:
    from pathlib import Path

    from schemas.manifests import FileEntry, Manifest
    from schemas.snapshots import Delta


def rebuild(filesystem: Any, remote: str, base: Path, target: Path, form: tuple[Manifest, Delta]) -> None:
    """Writes the files of a version.

    Args:
        filesystem: of the store.
        remote: the version's directory there, with the deltas.
        base: local directory of the version that the deltas change.
        target: where the files go; created.
        form: the version's manifest, and its deltas in the order of the manifest's files.

    Raises:
        RecordError: ``bad_files``: base and delta do not give the files of the manifest.
        OSError: the store or the disk fails.
    """
    manifest, delta = form
    if len(manifest.files) != len(delta.files):
        raise RecordError("bad_source", f"{len(delta.files)} deltas for {len(manifest.files)} files")
    target.mkdir(parents=True, exist_ok=True)

    def write(files: tuple[FileEntry, FileEntry]) -> None:
        new, change = files
        value = _rebuild(base / new.name, _read(filesystem, f"{remote}/{change.name}", change), new)
        (target / new.name).parent.mkdir(parents=True, exist_ok=True)
        (target / new.name).write_bytes(value)

    with ThreadPoolExecutor(max_workers=parallel(len(manifest.files))) as pool:
        list(pool.map(write, zip(manifest.files, delta.files, strict=True)))


def _read(filesystem: Any, path: str, expected: FileEntry) -> bytes:
    if filesystem.size(path) != expected.size:
        raise RecordError("bad_files", f"{path} has {filesystem.size(path)} bytes, expected {expected.size}")
    value: bytes = filesystem.cat_file(path)
    return value


def _rebuild(base: Path, delta: bytes, expected: FileEntry) -> bytearray:
    value = apply(base.read_bytes(), delta)
    if not expected.agrees(value):
        raise RecordError("bad_files", f"{base} and its delta do not give {expected.name} of the manifest")
    return value
