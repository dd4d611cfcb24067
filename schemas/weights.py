"""Records of ``{run}.weights``: written by the learner, read by workers and the audit."""

from typing import Any, Self

from pydantic import Field

from schemas.manifests import MANIFEST_NAME
from schemas.records import Instant, Record, now


class WeightVersion(Record):
    """The announcement of one version of the weights.

    It carries no path: a worker builds the path from its own configured root (:func:`version_path`).

    Example::

        {"schema": 1, "version": 12, "step": 12, "generation": 1, "manifest_sha256": "ab…",
         "dtype": "bfloat16", "base_model": "SmolLM2-135M-Instruct",
         "published_at": "2026-01-31T12:00:00.000Z"}
    """

    version: int = Field(ge=1, lt=1 << 63)
    """A counter that never goes back and is never used twice, also across restarts."""
    step: int = Field(ge=0, lt=1 << 63)
    """Optimizer steps that these weights have seen."""
    generation: int = Field(ge=1, lt=1 << 63)
    """One per learner start."""
    manifest_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the bytes of the version's ``MANIFEST.json``."""
    dtype: str
    """``float32``, ``bfloat16`` or ``float16``."""
    base_model: str
    """The name of the model that training started from."""
    published_at: Instant = Field(default_factory=now)

    def supersedes(self, other: Self) -> bool:
        """Whether it comes after another; a learner that was replaced may still announce higher versions."""
        return self.version > other.version and self.generation >= other.generation


def version_path(root: str, version: int) -> str:
    """The directory of a version below a store's root (an fsspec URL or a local path)."""
    return f"{root.rstrip('/')}/{version:08d}"


def hold_path(root: str, version: int, holder: str) -> str:
    """The empty file below a store's root by which a reader asks that a version stays: see :func:`held_versions`."""
    return f"{root.rstrip('/')}/held/{version:08d}.{holder}"


def is_stored(filesystem: Any, root: str, version: int) -> bool:
    """Whether a store has the version; a removal that has begun took its manifest first.

    Args:
        filesystem: of fsspec.
        root: of the store, as that file system takes it.
        version: its number.
    """
    filesystem.invalidate_cache()
    return bool(filesystem.exists(f"{version_path(root, version)}/{MANIFEST_NAME}"))


def held_versions(filesystem: Any, root: str) -> dict[str, set[int]]:
    """The versions that readers want to stay in a store, by the reader's name.

    Args:
        filesystem: of fsspec.
        root: of the store, as that file system takes it.
    """
    filesystem.invalidate_cache()
    try:
        paths = filesystem.ls(f"{root.rstrip('/')}/held", detail=False)
    except FileNotFoundError:
        return {}
    held: dict[str, set[int]] = {}
    for name in (path.rsplit("/", 1)[-1] for path in paths):
        version, _, holder = name.partition(".")
        if version.isdigit() and holder:
            held.setdefault(holder, set()).add(int(version))
    return held
