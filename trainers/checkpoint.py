"""Checkpoints: one directory each, under a name that is never used again.

    {root}/g0002-s00000010-1f3c…/state/…       model and optimizer (trainers/full_state.py)
                                /state.json    what the learner knows besides (State)
                                /MANIFEST.json sha256 of every file and of the parent's manifest, created
                                               last and atomically: without it there is no checkpoint

The ledger entry comes after the manifest; a crash in between leaves a good checkpoint, which the next
start records. Nothing is loaded before its hash was compared. A scorer's checkpoints (trainers/learn_scorer.py)
have the same form and other knowledge in ``state.json``.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from schemas.crash_points import crash_point
from schemas.errors import ConfigError, DiskError, StateError
from schemas.ledger import CheckpointEntry, Position
from schemas.manifests import MANIFEST_NAME, Manifest, describe, sha256, verify
from trainers.disk import disk_errors, sync_tree, write_atomically
from trainers.restart import History

_log = structlog.get_logger(__name__)
_STATE_NAME: Final = "state.json"
_KIND: Final = "checkpoint"
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class State:
    """What a learner must know to go on, besides what DeepSpeed saves. All values are JSON."""

    generation: int
    step: int
    version: int
    """The highest weight version used so far."""
    fingerprint: dict[str, str | int]
    """What has to be the same for the shards to fit: name and value, for the error message."""
    config_sha256: str
    """Of the whole configuration: for people."""
    topic_ids: dict[str, str]
    positions: dict[str, int]
    """Next offset of each trajectories partition."""
    letters_position: int
    """Next offset of the dead-letters topic."""
    accounts: dict[str, Any]
    """See :meth:`trainers.accounts.Accounts.dump`."""
    frontier: dict[str, int]
    admitted: int
    """Prompts below the frontier."""
    drops: list[dict[str, Any]] = field(default_factory=list)
    """Dropped groups that no ledger entry names yet."""
    baselines: dict[str, float] = field(default_factory=dict)
    """See :attr:`trainers.advantages.Advantages.baselines`."""
    pending_positions: dict[str, int] = field(default_factory=dict)
    """Next offset of each pending partition; of those that an older checkpoint lacks the first one."""
    federation: dict[str, Any] | None = None
    """See :class:`trainers.federation.site.Contribution`; null for a run that is no site, or has no global version."""

    @property
    def at(self) -> Position:
        """The point of the line."""
        return Position(generation=self.generation, step=self.step)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on the disk whose hashes were compared."""

    directory: Path
    state: State
    manifest_sha256: str
    parent_sha256: str | None

    def entry(self) -> CheckpointEntry:
        """Its line in the ledger."""
        return CheckpointEntry(
            generation=self.state.generation,
            step=self.state.step,
            manifest_sha256=self.manifest_sha256,
            parent_sha256=self.parent_sha256,
        )


class CheckpointStore:
    """The checkpoints below one root, a path that all ranks see."""

    def __init__(self, root: Path, keep: int) -> None:
        self._root, self._keep = root, keep
        with disk_errors("checkpoints", root):
            root.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def new_directory(self, generation: int, step: int) -> Iterator[Path]:
        """The directory of a checkpoint to come; removed again where there is no room for it.

        Raises:
            DiskError: whatever raised it inside.
        """
        directory = self._root / f"g{generation:04d}-s{step:08d}-{uuid.uuid4().hex[:8]}"
        try:
            with disk_errors("checkpoint", directory):
                directory.mkdir()
            yield directory
        except DiskError:
            _remove(directory)  # half a checkpoint would keep the disk full
            raise

    def finish(self, directory: Path, state: State, parent_sha256: str | None) -> Checkpoint:
        """Makes the shards that lie in the directory a checkpoint."""
        return Checkpoint(directory, state, self.seal(directory, asdict(state), parent_sha256), parent_sha256)

    def seal(self, directory: Path, known: dict[str, Any], parent_sha256: str | None) -> str:
        """Adds ``state.json``, makes all of it durable, and then writes the manifest; returns its sha256."""
        with disk_errors("checkpoint", directory):
            crash_point("checkpoint_half_written")
            (directory / _STATE_NAME).write_text(json.dumps(known, indent=1, sort_keys=True))
            sync_tree(directory)
            manifest = describe_all(directory, {"kind": _KIND, "parent_sha256": parent_sha256}).encode()
            crash_point("before_manifest")
            write_atomically(directory / MANIFEST_NAME, manifest)
            crash_point("after_manifest")
        return sha256(manifest)

    def prune(self) -> None:
        """Removes all but the newest checkpoints, and what never became one."""
        crash_point("before_cleanup")
        found = sorted(self._root.glob("g*-s*-*"), key=_age)
        whole = [directory for directory in found if (directory / MANIFEST_NAME).is_file()]
        for directory in found:
            if directory not in whole[-self._keep :]:
                _remove(directory)

    def sweep(self) -> None:
        """Removes what a learner that died was about to write: it may be what fills the disk."""
        for directory in self._root.glob("g*-s*-*"):
            if not (directory / MANIFEST_NAME).is_file():
                _log.warning("unfinished checkpoint removed", directory=str(directory))
                _remove(directory)

    def newest_verified(self, history: History, before: int | None = None) -> Checkpoint | None:
        """The newest checkpoint of the surviving line whose hashes are right.

        Args:
            history: the ledger.
            before: only those of earlier steps count.

        Returns:
            None if the run never had a checkpoint.

        Raises:
            StateError: there are or were checkpoints, but none can be used.
        """
        found, faults = newest_usable(self._root, history, before)
        recorded = history.checkpoints()
        if found or (not faults and not recorded):
            return found
        named = f"the ledger names one at step {recorded[-1].step}" if recorded else "the ledger names none"
        sought = "" if before is None else f" of a step before {before}"
        raise StateError(
            f"no usable checkpoint{sought} below {self._root}, although the run has had some ({named}): "
            f"{'; '.join(faults) or 'the directory is empty'}. Restore one, correct learner.checkpoint_root, "
            "or start a run of another name"
        )


def newest_usable(root: Path, history: History, before: int | None = None) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of the surviving line whose hashes are right; writes nothing.

    Args:
        root: where checkpoints lie.
        history: the ledger.
        before: only those of earlier steps count.

    Returns:
        The checkpoint, and what is wrong with each newer one.
    """
    return first_usable(root, lambda directory: _verified(directory, history), before)


def first_usable(
    root: Path, read: Callable[[Path], _Read], before: int | None = None
) -> tuple[_Read | None, list[str]]:
    """The newest checkpoint that can be read.

    Args:
        root: where checkpoints lie.
        read: raises ``StateError`` for one that cannot be used.
        before: only those of earlier steps count.

    Returns:
        What was read, and what is wrong with each newer one.
    """
    faults: list[str] = []
    whole = [directory for directory in root.glob("g*-s*-*") if (directory / MANIFEST_NAME).is_file()]
    for directory in sorted(whole, key=_age, reverse=True):
        if before is not None and _step(directory) >= before:
            continue
        try:
            return read(directory), faults
        except (StateError, FileNotFoundError) as error:  # a running learner may remove it meanwhile
            _log.error("checkpoint cannot be used, falling back to an older one", reason=str(error))
            faults.append(str(error))
    return None, faults


def _age(directory: Path) -> tuple[str, float]:
    name = directory.name.rsplit("-", 1)[0]
    return name, directory.stat().st_mtime


def _step(directory: Path) -> int:
    return int(directory.name.split("-")[1].removeprefix("s"))


def _remove(directory: Path) -> None:
    (directory / MANIFEST_NAME).unlink(missing_ok=True)  # without it no reader takes it for a checkpoint
    shutil.rmtree(directory, ignore_errors=True)


def describe_all(directory: Path, facts: dict[str, Any]) -> Manifest:
    """The manifest of all files below a directory."""
    files = _local_files()
    names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    entries = tuple(describe(files, str(directory), name) for name in names)
    return Manifest(files=entries, facts=facts)


def _verified(directory: Path, history: History) -> Checkpoint:
    known, manifest_sha256, parent = read_verified(directory)
    state = State(**known)
    recorded = {entry.manifest_sha256 for entry in history.checkpoints()}
    if not history.is_on_line(state.at):
        raise StateError(
            f"{directory}: step {state.step} of generation {state.generation} is not on the surviving line"
        )
    if parent is not None and parent not in recorded:
        raise StateError(f"{directory}: its parent {parent} is not known to the ledger")
    return Checkpoint(directory, state, manifest_sha256, parent)


def read_verified(directory: Path) -> tuple[dict[str, Any], str, str | None]:
    """What ``state.json`` says, the sha256 of the manifest, and that of its parent.

    Raises:
        StateError: a file is not what the manifest says.
    """
    manifest_sha256, manifest = _read_manifest(directory)
    verify(_local_files(), str(directory), manifest)
    known: dict[str, Any] = json.loads((directory / _STATE_NAME).read_bytes())
    return known, manifest_sha256, manifest.facts.get("parent_sha256")


def _read_manifest(directory: Path) -> tuple[str, Manifest]:
    value = (directory / MANIFEST_NAME).read_bytes()
    return sha256(value), Manifest.decode(value, sha256(value))


def _local_files() -> Any:
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem()


def require_fit(saved: dict[str, str | int], given: dict[str, str | int], directory: Path) -> None:
    """Compares what a checkpoint was made with.

    Raises:
        ConfigError: naming both values of everything that differs.
    """
    differing = [
        f"{name} is {saved.get(name)!r} in the checkpoint and {given.get(name)!r} now"
        for name in sorted(saved.keys() | given.keys())
        if saved.get(name) != given.get(name)
    ]
    if differing:
        raise ConfigError(
            f"checkpoint {directory} does not fit: {'; '.join(differing)}. Set it back, or start a new run"
        )
