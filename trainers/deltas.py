"""Versions of the store as the changes since the version before: ``weights.delta``.

    shards ──bytes──► the last version's bytes? ──encode──► model….delta + SOURCE.json
                      └── none, every weights.full_every-th, or a delta that saves nothing: the files themselves

The manifest is the same either way: it names the whole files and their hashes, which whoever rebuilds
them must come to.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from schemas.deltas import encode
from schemas.manifests import FileEntry, parallel, sha256
from schemas.snapshots import SOURCE_NAME, Delta
from trainers.shards import Shard, describe, gather

_WORTH: Final = 0.75
"""Deltas larger than this share of the files are not written."""


class Deltas:
    """Remembers the bytes of the last version: as much memory on the host as the weights take."""

    def __init__(self, filesystem: Any, full_every: int) -> None:
        self._files, self._full_every = filesystem, full_every
        self._last: dict[str, bytearray] = {}
        self._since_full = 0

    def write(self, directory: str, shards: list[Shard], base: tuple[int, str] | None) -> tuple[FileEntry, ...]:
        """Writes a version below its directory.

        Args:
            directory: of the version.
            shards: its files-to-be.
            base: number and manifest's sha256 of the version before; null if this process wrote none.

        Returns:
            The entries of the whole files, for the manifest.
        """
        with ThreadPoolExecutor(max_workers=parallel(len(shards))) as pool:
            values = dict(zip([shard.name for shard in shards], pool.map(gather, shards), strict=True))
            entries = tuple(pool.map(lambda shard: describe(shard, values[shard.name]), shards))
            deltas = self._encode(shards, values, pool) if base and self._may_follow(values) else None
        if base and deltas is not None:
            self._put_deltas(directory, deltas, base)
        else:
            self._put(directory, values)
        self._since_full = self._since_full + 1 if deltas is not None else 1
        self._last = values
        return entries

    def _may_follow(self, values: dict[str, bytearray]) -> bool:
        sizes = {name: len(value) for name, value in values.items()}
        return self._since_full < self._full_every and sizes == {name: len(last) for name, last in self._last.items()}

    def _encode(
        self, shards: list[Shard], values: dict[str, bytearray], pool: ThreadPoolExecutor
    ) -> dict[str, bytes] | None:
        """Null if they are not worth it."""

        def make(shard: Shard) -> bytes:
            return encode(self._last[shard.name], values[shard.name], shard.number_bytes)

        deltas = {f"{shard.name}.delta": delta for shard, delta in zip(shards, pool.map(make, shards), strict=True)}
        saves = sum(map(len, deltas.values())) <= _WORTH * sum(map(len, values.values()))
        return deltas if saves else None

    def _put_deltas(self, directory: str, deltas: dict[str, bytes], base: tuple[int, str]) -> None:
        self._put(directory, deltas)
        files = tuple(FileEntry(name=name, size=len(delta), sha256=sha256(delta)) for name, delta in deltas.items())
        source = Delta(base=base[0], base_manifest_sha256=base[1], files=files)
        self._files.pipe_file(f"{directory}/{SOURCE_NAME}", source.model_dump_json().encode())

    def _put(self, directory: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self._files.pipe_file(f"{directory}/{name}", bytes(value))
