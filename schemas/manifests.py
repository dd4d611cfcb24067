"""Manifests: the list of a directory's files with their sizes and hashes.

The manifest is written last and atomically; a directory without one does not exist for any reader.
Weight versions and checkpoints both have one. Its sha256 travels in the log.

A file may be hashed in pieces, by as many threads as there are processors: sha256 itself has no other way than from
the first byte to the last, 0.3 s for the largest tensor of a model of 1.5 billion weights.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from schemas.errors import StateError

MANIFEST_NAME: Final = "MANIFEST.json"
PIECE_BYTES: Final = 8 << 20
"""Pieces of the files that are written in pieces: SmolLM2-135M has 33, so that 16 processors share it evenly."""
_CHUNK_BYTES: Final = 1 << 20
"""Read and hashed in one go, while the processor's cache holds it. Each thread has a buffer of this: with 8 MiB the
buffers of 14 threads were half as much memory, all of it new, as SmolLM2-135M has weights."""
_BLOCK_BYTES: Final = 8 << 20
"""That is asked of a store behind a network at once."""
_MAX_THREADS: Final = 32
_SPARED: Final = 8
"""One processor of so many is left to whoever generates, or computes the next gradient, meanwhile."""
_own = threading.local()


class FileEntry(BaseModel):
    """One file of the directory. Example: ``{"name": "model.safetensors", "size": 269060552, "sha256": "…"}``."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")
    """Relative to the directory; no part starts with a dot."""
    size: int = Field(ge=0)
    """Bytes."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the file; with ``piece_bytes`` of the sha256s (32 bytes each) of its pieces, one after the other."""
    piece_bytes: int | None = Field(default=None, gt=0)
    """Length of each piece but the last; null if the file is hashed as a whole."""

    @model_serializer(mode="wrap")
    def _without_null(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}

    @classmethod
    def of_pieces(cls, name: str, size: int, digests: Iterable[bytes]) -> Self:
        """A file's entry from the sha256 of each of its :func:`pieces`; a single piece is the file."""
        found = list(digests)
        if len(found) == 1:
            return cls(name=name, size=size, sha256=found[0].hex())
        return cls(name=name, size=size, sha256=sha256(b"".join(found)), piece_bytes=PIECE_BYTES)

    def agrees(self, value: Any) -> bool:
        """Whether these are the file's bytes."""
        found = [hashlib.sha256(value[begin:end]).digest() for begin, end in self._pieces()]
        return len(value) == self.size and _combine(found, self.piece_bytes) == self.sha256

    def _pieces(self) -> Iterator[tuple[int, int]]:
        return pieces(self.size, self.piece_bytes or max(1, self.size))


def pieces(size: int, piece_bytes: int | None = None) -> Iterator[tuple[int, int]]:
    """First byte of each piece of a file, and the one after its last; an empty file has one piece.

    Args:
        size: of the file, in bytes.
        piece_bytes: null for :data:`PIECE_BYTES`.
    """
    length = piece_bytes or PIECE_BYTES
    return ((begin, min(size, begin + length)) for begin in range(0, max(1, size), length))


def _combine(digests: list[bytes], piece_bytes: int | None) -> str:
    return digests[0].hex() if piece_bytes is None else sha256(b"".join(digests))


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
    """Hashes one file of a directory on an fsspec file system, as a whole."""
    digest, size = _hash(filesystem, f"{directory}/{name}", 0, None)
    return FileEntry(name=name, size=size, sha256=digest.hex())


def _hash(filesystem: Any, path: str, begin: int, end: int | None) -> tuple[bytes, int]:
    """sha256 and number of the bytes of a part of a file; null for its end."""
    digest, place = hashlib.sha256(), begin
    chunk = _buffer()
    with filesystem.open(path, "rb", block_size=_BLOCK_BYTES) as stream:
        stream.seek(begin)
        while count := stream.readinto(chunk if end is None else chunk[: end - place]):
            digest.update(chunk[:count])
            place += count
    return digest.digest(), place - begin


def _buffer() -> memoryview:
    """Of the thread."""
    if not hasattr(_own, "buffer"):
        _own.buffer = memoryview(bytearray(_CHUNK_BYTES))
    found: memoryview = _own.buffer
    return found


def verify(filesystem: Any, directory: str, manifest: Manifest) -> None:
    """Compares every file of a directory with its manifest, several files and pieces at once.

    Raises:
        StateError: a file is missing, or has another size or hash.
    """
    jobs = [(entry, *piece) for entry in manifest.files for piece in entry._pieces()]
    with ThreadPoolExecutor(max_workers=parallel(len(jobs))) as pool:
        found = pool.map(lambda job: _hash_piece(filesystem, directory, *job), jobs)
        for expected in manifest.files:
            _verify(f"{directory}/{expected.name}", expected, [next(found) for _ in expected._pieces()])


def parallel(jobs: int) -> int:
    """How many threads hash that many files or pieces: hashing leaves Python's lock alone."""
    processors = len(os.sched_getaffinity(0))
    return max(1, min(jobs, processors - processors // _SPARED, _MAX_THREADS))


def _hash_piece(filesystem: Any, directory: str, entry: FileEntry, begin: int, end: int) -> tuple[bytes, int]:
    """The last piece is read to the end of the file, however long that is."""
    path = f"{directory}/{entry.name}"
    try:
        return _hash(filesystem, path, begin, None if end == entry.size else end)
    except FileNotFoundError as error:
        raise StateError(f"{path} is missing") from error


def _verify(path: str, expected: FileEntry, found: list[tuple[bytes, int]]) -> None:
    size = sum(length for _, length in found)
    digest = _combine([digest for digest, _ in found], expected.piece_bytes)
    if (size, digest) != (expected.size, expected.sha256):
        raise StateError(f"{path} has {size} bytes with sha256 {digest}, "
                         f"expected {expected.size} with {expected.sha256}")  # fmt: skip
