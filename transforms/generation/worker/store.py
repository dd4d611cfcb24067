"""The weight store, as a worker sees it: every version is a local directory, ready to be memory-mapped.

    local path or file://    read in place
    any other fsspec URL     downloaded ─┐
    a delta, on either       rebuilt ────┴─► a cache of this worker that holds the two newest versions

The root comes from the configuration only. No path that came in a message is ever opened: file
names are those of a manifest whose hash was announced and whose form ``schemas.manifests`` checks.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from schemas.errors import RecordError
from schemas.manifests import MANIFEST_NAME, Manifest
from schemas.snapshots import SOURCE_NAME, Delta, decode_source
from schemas.weights import is_stored, version_path
from transforms.generation.worker.rebuild import rebuild

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from schemas.weights import WeightVersion

_CACHED_VERSIONS: Final = 2
"""The one that is served and the one that is being verified."""
_MAX_MANIFEST_BYTES: Final = 16 << 20
"""A manifest names some hundred files and carries one probe; more is not a manifest."""


class WeightStore:
    """Turns an announced version into a directory of local files."""

    def __init__(self, root: str) -> None:
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        self._filesystem: Any
        self._filesystem, self._root = url_to_fs(root)
        self._local = isinstance(self._filesystem, LocalFileSystem)
        self._made: Path | None = None
        self._cached: dict[int, str] = {}

    @property
    def _cache(self) -> Path:
        """Made at its first use: most workers read in place."""
        if self._made is None:
            self._made = Path(tempfile.mkdtemp(prefix="asyncflow-weights-"))
        return self._made

    def fetch(self, announced: WeightVersion) -> tuple[Path, Manifest]:
        """Makes a version local.

        Raises:
            RecordError: ``vanished``, ``unreadable`` (the store or the disk fails), ``bad_source`` or
                ``bad_manifest``; a file whose size is not the manifest's, or a delta that does not lead to the
                manifest's files, is ``bad_files``.
        """
        try:
            return self._fetch(announced.version, announced.manifest_sha256)
        except FileNotFoundError as error:
            raise RecordError("vanished", f"version {announced.version}: {error} does not exist") from error
        except OSError as error:
            raise RecordError("unreadable", f"version {announced.version}: {error}") from error

    def _fetch(self, version: int, manifest_sha256: str) -> tuple[Path, Manifest]:
        remote = version_path(self._root, version)
        manifest = read_manifest(self._filesystem, remote, manifest_sha256)
        delta = self._delta_of(remote)
        if delta is not None:
            return self._rebuild(version, manifest_sha256, manifest, delta), manifest
        if self._local:
            return Path(remote), manifest
        directory = self._download(remote, manifest, version)
        self._cached[version] = manifest_sha256
        return directory, manifest

    def has(self, version: int) -> bool:
        """Whether the version is still in the store."""
        return is_stored(self._filesystem, self._root, version)

    # ------------------------------------------------------------------ delta

    def _delta_of(self, remote: str) -> Delta | None:
        path = f"{remote}/{SOURCE_NAME}"
        if not self._filesystem.exists(path):
            return None
        with self._filesystem.open(path, "rb") as stream:
            source = decode_source(stream.read(_MAX_MANIFEST_BYTES))
        return source if isinstance(source, Delta) else None

    def _rebuild(self, version: int, manifest_sha256: str, manifest: Manifest, delta: Delta) -> Path:
        """The whole files of a delta, from its base: the last version if that is here, else all since a full one."""
        base = self._base(version, delta)
        self._make_room()
        target = Path(version_path(str(self._cache), version))
        try:
            rebuild(self._filesystem, version_path(self._root, version), base, target, (manifest, delta))
        except RecordError:
            self._forget()  # the base may be what is wrong: the next delta starts from the store
            raise
        self._cached[version] = manifest_sha256
        return target

    def _forget(self) -> None:
        self._cached.clear()
        for directory in self._cache.iterdir():
            shutil.rmtree(directory)

    def _base(self, version: int, delta: Delta) -> Path:
        if self._cached.get(delta.base) == delta.base_manifest_sha256:
            return Path(version_path(str(self._cache), delta.base))
        if delta.base >= version:
            raise RecordError("bad_source", f"version {version} is a delta on version {delta.base}")
        return self._fetch(delta.base, delta.base_manifest_sha256)[0]

    # --------------------------------------------------------------- download

    def _download(self, remote: str, manifest: Manifest, version: int) -> Path:
        directory = Path(version_path(str(self._cache), version))
        self._make_room()
        for entry in manifest.files:
            size = self._filesystem.size(f"{remote}/{entry.name}")
            if size != entry.size:
                raise RecordError("bad_files", f"{remote}/{entry.name} has {size} bytes, expected {entry.size}")
        for name in self._names(remote, manifest):
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._filesystem.get_file(f"{remote}/{name}", str(target))
        return directory

    def _names(self, remote: str, manifest: Manifest) -> list[str]:
        names = [entry.name for entry in manifest.files]
        return [*names, SOURCE_NAME] if self._filesystem.exists(f"{remote}/{SOURCE_NAME}") else names

    def _make_room(self) -> None:
        for old in sorted(self._cache.iterdir())[: -(_CACHED_VERSIONS - 1)]:
            shutil.rmtree(old)
            self._cached.pop(int(old.name), None)

    def close(self) -> None:
        """Removes what was downloaded."""
        if self._made:
            shutil.rmtree(self._made, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_manifest(filesystem: Any, directory: str, expected_sha256: str) -> Manifest:
    """Reads and checks ``MANIFEST.json`` of a directory.

    Raises:
        FileNotFoundError: there is none.
        RecordError: ``bad_manifest``: it is not the announced one.
    """
    from schemas.errors import StateError

    with filesystem.open(f"{directory}/{MANIFEST_NAME}", "rb") as stream:
        value = stream.read(_MAX_MANIFEST_BYTES)
    try:
        return Manifest.decode(value, expected_sha256)
    except StateError as error:
        raise RecordError("bad_manifest", f"{directory}: {error}") from error
