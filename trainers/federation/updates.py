"""The files of an update, in the federation's store: written by its site, read by the coordinator.

    {store}/updates/{site}/{sequence}/update.safetensors ─► MANIFEST.json (last) ─► SiteUpdate, to be announced

The same update gives the same bytes, so a site that is killed writes it again, over what is there. A directory is
believed only as far as its manifest's hash was announced, and read once: what was verified is what is merged.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from schemas.errors import RecordError, StateError
from schemas.federation import SiteUpdate, update_path
from schemas.manifests import MANIFEST_NAME, FileEntry, Manifest, sha256, verify
from trainers.disk import disk_errors
from trainers.federation.codecs import Arrays, decode
from trainers.federation.layout import Layout, Row

UPDATE_NAME: Final = "update.safetensors"
KIND: Final = "update"
_HEADER_BYTES: Final = 1 << 20
_TENSOR_HEADER_BYTES: Final = 1024
_MANIFEST_BYTES: Final = 64 << 10
_INDEXED_BYTES: Final = 9
"""Most that a number takes, with its place, value and share of a scale."""


def write(store: str, update: SiteUpdate, arrays: Mapping[str, npt.NDArray[Any]]) -> SiteUpdate:
    """Writes an update's files; returns the record that announces them, not yet signed.

    Args:
        store: the federation's, as this site reaches it.
        update: with anything for ``bytes`` and ``manifest_sha256``, which are filled in.
        arrays: of :func:`trainers.federation.codecs.encode`.

    Raises:
        DiskError: there is no room or no permission.
    """
    from fsspec.core import url_to_fs

    files, root = url_to_fs(store)
    directory = update_path(root, update.site, update.sequence)
    record, value, manifest = encoded(update, arrays)
    with disk_errors(f"update {update.sequence}", directory):
        files.makedirs(directory, exist_ok=True)
        _put(files, f"{directory}/{UPDATE_NAME}", value)
        _put(files, f"{directory}/{MANIFEST_NAME}", manifest)
    return record


def encoded(update: SiteUpdate, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[SiteUpdate, bytes, bytes]:
    """What :func:`write` returns and writes: the record, the file of arrays, and the manifest."""
    from safetensors.numpy import save

    value = save(dict(sorted(arrays.items())))
    facts = {"kind": KIND, "site": update.site, "sequence": update.sequence, "base_version": update.base_version,
             "codec": update.codec}  # fmt: skip
    entry = FileEntry(name=UPDATE_NAME, size=len(value), sha256=sha256(value))
    manifest = Manifest(files=(entry,), facts=facts).encode()
    told = {"bytes": len(value), "manifest_sha256": sha256(manifest), "signature": None}
    return update.model_copy(update=told), value, manifest


def are_there(store: str, update: SiteUpdate) -> bool:
    """Whether a store has the files of an update as they were announced."""
    from fsspec.core import url_to_fs

    files, root = url_to_fs(store)
    directory = update_path(root, update.site, update.sequence)
    try:
        manifest = Manifest.decode(files.cat_file(f"{directory}/{MANIFEST_NAME}"), update.manifest_sha256)
        verify(files, directory, manifest)
    except (FileNotFoundError, StateError):
        return False
    return True


def _put(files: Any, path: str, value: bytes) -> None:
    """A reader sees the whole file or none: object stores create them so, and a disk renames."""
    from fsspec.implementations.local import LocalFileSystem

    if not isinstance(files, LocalFileSystem):
        files.pipe_file(path, value)
        return
    beside = Path(path).with_name(f".{Path(path).name}")
    beside.write_bytes(value)
    beside.rename(path)


def read(files: Any, root: str, update: SiteUpdate, layout: Layout) -> Row:
    """The numbers of an announced update.

    Args:
        files: the store's file system, of fsspec.
        root: of the store, as that file system takes it.
        update: as announced.
        layout: of the global version.

    Raises:
        RecordError: ``bad_manifest`` or ``wrong_shape``.
    """
    directory = update_path(root, update.site, update.sequence)
    entry = _entry(files, directory, update)
    if entry.size > _most_bytes(layout):
        told = f"{UPDATE_NAME} has {entry.size} bytes, expected at most {_most_bytes(layout)} for {layout.size} numbers"
        raise RecordError("wrong_shape", told)
    value = _cat(files, f"{directory}/{UPDATE_NAME}", entry.size)
    if not entry.agrees(value):
        raise RecordError("bad_manifest", f"{UPDATE_NAME} has {len(value)} bytes that are not the announced ones")
    return decode(update.codec, _arrays(value), layout)


def _most_bytes(layout: Layout) -> int:
    return layout.size * _INDEXED_BYTES + len(layout.shapes) * _TENSOR_HEADER_BYTES + _HEADER_BYTES


def _entry(files: Any, directory: str, update: SiteUpdate) -> FileEntry:
    value = _cat(files, f"{directory}/{MANIFEST_NAME}", _MANIFEST_BYTES)
    try:
        manifest = Manifest.decode(value, update.manifest_sha256)
    except StateError as error:
        raise RecordError("bad_manifest", str(error)) from error
    if [entry.name for entry in manifest.files] != [UPDATE_NAME]:
        raise RecordError("bad_manifest", f"it names {len(manifest.files)} files, expected {UPDATE_NAME} alone")
    for fact in ("site", "sequence", "base_version", "codec"):
        if manifest.facts.get(fact) != getattr(update, fact):
            told = f"its {fact} is {str(manifest.facts.get(fact))[:80]!r}, announced was {getattr(update, fact)!r}"
            raise RecordError("bad_manifest", told)
    return manifest.files[0]


def _cat(files: Any, path: str, most: int) -> bytes:
    """A file, of which no more is read than was to be expected."""
    name = path.rsplit("/", 1)[-1]
    try:
        if files.info(path)["type"] != "file":
            raise RecordError("bad_manifest", f"{name} is no file")  # opening a pipe would wait for ever
        with files.open(path, "rb") as stream:
            value: bytes = stream.read(most + 1)
    except FileNotFoundError as error:
        raise RecordError("bad_manifest", f"{name} is missing") from error
    return value


def _arrays(value: bytes) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: Arrays = load(value)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:  # KeyError: a dtype that numpy does not have
        raise RecordError("bad_manifest", f"{UPDATE_NAME} cannot be read: {error}") from error
    return arrays


def remove(files: Any, root: str, site: str, sequence: int) -> None:
    """Removes what was merged; nothing happens if it is gone."""
    directory = update_path(root, site, sequence)
    if files.exists(directory):
        files.rm(directory, recursive=True)
