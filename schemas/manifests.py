"""Manifests: the list of a directory's files with their sizes and hashes.

The manifest is written last and atomically; a directory without one does not exist for any reader.
Weight versions and checkpoints both have one. Its sha256 travels in the log.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import StateError

MANIFEST_NAME: Final = "MANIFEST.json"
_CHUNK_BYTES: Final = 1 << 20
"""Stays in the processor's cache between reading and hashing. A thread asks for Python's lock twice for each, and
beside a worker's event loop it waits for it every time."""
_MAX_THREADS: Final = 32


class FileEntry(BaseModel):
    """One file of the directory. Example: ``{"name": "model.safetensors", "size": 269060552, "sha256": "…"}``."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")
    """Relative to the directory; no part starts with a dot."""
    size: int = Field(ge=0)
    """Bytes."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What a directory holds, and what its writer wants readers to know of it."""

    model_config = ConfigDict(frozen=True)

    files: tuple[FileEntry, ...] = Field(min_length=1)
    facts: dict[str, Any] = Field(default_factory=dict)
    """Written by the publisher: see ``trainers/publish.py`` and ``trainers/checkpoint.py``."""

    def encode(self) -> bytes:
        """The bytes of ``MANIFEST.json``: the same for equal manifests."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1).encode()

    @classmethod
    def decode(cls, value: bytes, expected_sha256: str) -> Self:
        """Reads ``MANIFEST.json``.

        Raises:
            StateError: the bytes do not have the announced hash, or are not a manifest.
        """
        if sha256(value) != expected_sha256:
            raise StateError(f"manifest has sha256 {sha256(value)}, expected {expected_sha256}")
        try:
            return cls.model_validate_json(value)
        except ValueError as error:
            raise StateError(f"not a manifest: {error}") from error


def sha256(value: bytes) -> str:
    """Of some bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(value).hexdigest()


def describe(filesystem: Any, directory: str, name: str) -> FileEntry:
    """Hashes one file of a directory on an fsspec file system."""
    digest, size = hashlib.sha256(), 0
    chunk = memoryview(bytearray(_CHUNK_BYTES))
    with filesystem.open(f"{directory}/{name}", "rb", block_size=_CHUNK_BYTES) as stream:
        while count := stream.readinto(chunk):
            digest.update(chunk[:count])
            size += count
    return FileEntry(name=name, size=size, sha256=digest.hexdigest())


def verify(filesystem: Any, directory: str, manifest: Manifest) -> None:
    """Compares every file of a directory with its manifest, several files at once.

    Raises:
        StateError: a file is missing, or has another size or hash.
    """
    with ThreadPoolExecutor(max_workers=parallel(len(manifest.files))) as pool:
        list(pool.map(lambda expected: _verify(filesystem, directory, expected), manifest.files))


def parallel(files: int) -> int:
    """How many threads hash that many files: hashing leaves Python's lock alone."""
    return max(1, min(files, len(os.sched_getaffinity(0)), _MAX_THREADS))


def _verify(filesystem: Any, directory: str, expected: FileEntry) -> None:
    try:
        found = describe(filesystem, directory, expected.name)
    except FileNotFoundError as error:
        raise StateError(f"{directory}/{expected.name} is missing") from error
    if found != expected:
        raise StateError(f"{directory}/{expected.name} has {found.size} bytes with sha256 {found.sha256}, "
                         f"expected {expected.size} with {expected.sha256}")  # fmt: skip
