"""The weight store, as a worker sees it: every version is a local directory, ready to be memory-mapped.

    local path or file://    read in place
    any other fsspec URL     downloaded to a cache of this worker that holds the two newest versions

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
from schemas.weights import version_path

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
        local = isinstance(self._filesystem, LocalFileSystem)
        self._cache = None if local else Path(tempfile.mkdtemp(prefix="asyncflow-weights-"))

    def fetch(self, announced: WeightVersion) -> tuple[Path, Manifest]:
        """Makes a version local.

        Raises:
            RecordError: ``vanished``, ``unreadable`` (the store or the disk fails) or ``bad_manifest``; a file whose
                size is not the manifest's is ``bad_files``.
        """
        try:
            remote = version_path(self._root, announced.version)
            manifest = read_manifest(self._filesystem, remote, announced.manifest_sha256)
            directory = self._download(remote, manifest, announced.version) if self._cache else Path(remote)
        except FileNotFoundError as error:
            raise RecordError("vanished", f"version {announced.version}: {error} does not exist") from error
        except OSError as error:
            raise RecordError("unreadable", f"version {announced.version}: {error}") from error
        return directory, manifest

    def has(self, version: int) -> bool:
        """Whether the version is still in the store; a removal that has begun took its manifest first."""
        self._filesystem.invalidate_cache()
        return bool(self._filesystem.exists(f"{version_path(self._root, version)}/{MANIFEST_NAME}"))

    def _download(self, remote: str, manifest: Manifest, version: int) -> Path:
        assert self._cache is not None
        directory = Path(version_path(str(self._cache), version))
        self._make_room()
        for entry in manifest.files:
            size = self._filesystem.size(f"{remote}/{entry.name}")
            if size != entry.size:
                raise RecordError("bad_files", f"{remote}/{entry.name} has {size} bytes, expected {entry.size}")
            target = directory / entry.name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._filesystem.get_file(f"{remote}/{entry.name}", str(target))
        return directory

    def _make_room(self) -> None:
        assert self._cache is not None
        for old in sorted(self._cache.iterdir())[: -(_CACHED_VERSIONS - 1)]:
            shutil.rmtree(old)

    def close(self) -> None:
        """Removes what was downloaded."""
        if self._cache:
            shutil.rmtree(self._cache, ignore_errors=True)

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
