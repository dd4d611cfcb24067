"""Global versions on a site's own disk: what training starts from, and what an update is the difference to.

    {store}/weights/00000012/ ──copy──► {checkpoint_root}/global/.00000012 ──hashes, finite──► …/global/00000012/

All ranks of the learner see the copy. It stays as long as a checkpoint may need it, whatever the federation's store
keeps.
"""

import os
import shutil
from pathlib import Path
from typing import Any, Final

from schemas.errors import StateError
from schemas.federation import weights_root
from schemas.manifests import MANIFEST_NAME, Manifest, verify
from schemas.weights import version_path
from trainers.disk import sync_tree, write_atomically
from trainers.federation.layout import Row

_ROOT: Final = "global"


class Copies:
    """The copies below one learner's checkpoints.

    Args:
        store: of the federation, a path or an fsspec URL.
        checkpoint_root: of the run.
        keep: copies that stay beside the one that was asked for last.
    """

    def __init__(self, store: str, checkpoint_root: Path, keep: int) -> None:
        self._store, self._root, self._keep = store, checkpoint_root / _ROOT, keep

    def find(self, version: int, manifest_sha256: str) -> Path | None:
        """The directory of a global version that is here; null if it is not."""
        directory = Path(version_path(str(self._root), version))
        return directory if self._is_good(directory, manifest_sha256) else None

    def fetch(self, version: int, manifest_sha256: str) -> Path:
        """The directory of a global version, copied if it is not here yet.

        Raises:
            StateError: the bytes are not what was announced, or are not finite.
            OSError: the store is away, or no longer has the version.
        """
        directory = Path(version_path(str(self._root), version))
        if self.find(version, manifest_sha256) is None:
            self._copy(version, manifest_sha256, directory)
        os.utime(directory)
        self._prune(directory)
        return directory

    def _is_good(self, directory: Path, manifest_sha256: str) -> bool:
        try:
            manifest = Manifest.decode((directory / MANIFEST_NAME).read_bytes(), manifest_sha256)
            verify(_local_files(), str(directory), manifest)
        except (FileNotFoundError, StateError):
            return False
        return True

    def _copy(self, version: int, manifest_sha256: str, directory: Path) -> None:
        from fsspec.core import url_to_fs

        files, root = url_to_fs(weights_root(self._store))
        source, partial = version_path(root, version), directory.with_name(f".{directory.name}")
        files.invalidate_cache()
        value = files.cat_file(f"{source}/{MANIFEST_NAME}")
        manifest = Manifest.decode(value, manifest_sha256)
        for stale in (partial, directory):
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir(parents=True)
        for entry in manifest.files:
            (partial / entry.name).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{source}/{entry.name}", str(partial / entry.name))
        verify(_local_files(), str(partial), manifest)
        _require_finite(partial)
        write_atomically(partial / MANIFEST_NAME, value)
        sync_tree(partial)
        partial.rename(directory)

    def _prune(self, needed: Path) -> None:
        """Those that were not asked for of late: numbers begin again where a federation does."""
        found = sorted(self._root.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        others = [path for path in found if path.name.isdigit() and path != needed]
        for directory in others[: max(0, len(others) - self._keep)]:
            shutil.rmtree(directory, ignore_errors=True)


def read_tensors(directory: Path) -> dict[str, Row]:
    """All tensors of a copy, in float32."""
    import torch

    from trainers.full_state import TensorFiles

    with TensorFiles(directory) as files:
        return {name: files.read(name).to(torch.float32).numpy() for name in sorted(files.names())}


def _require_finite(directory: Path) -> None:
    from trainers.full_state import TensorFiles

    with TensorFiles(directory) as files:
        for name in sorted(files.names()):
            if not bool(files.read(name).isfinite().all()):
                raise StateError(f"{directory}: {name} holds numbers that are not finite")


def _local_files() -> Any:
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem()
