"""Where the local stack keeps what it downloads, builds and converts, for this and the next time."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import DiskError

DEFAULT_RUNS = Path("runs")
"""Where runs leave their files, seen from the working directory."""


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/asyncflow``, or ``~/.cache/asyncflow``; created if it is missing.

    Raises:
        DiskError: it cannot be created.
    """
    return make_directory(cache_place())


def cache_place() -> Path:
    """Where :func:`cache_dir` is, or will be."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "asyncflow"


def make_directory(directory: Path) -> Path:
    """Creates a directory with its parents and returns it.

    Raises:
        DiskError: there is no room, no permission, or a file in the way.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"cannot create {directory}: {error.strerror}; free room there or choose another place"
        ) from error
    return directory


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Has ``target`` built if it does not exist: whole or not at all, by one process at a time.

    Args:
        target: a file or directory of the cache.
        build: writes it to the path it is given, which lies beside ``target`` and does not exist yet.
    """
    if target.exists():
        return target
    make_directory(target.parent)
    with locked(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            _build_beside(target, build)
    return target


def _build_beside(target: Path, build: Callable[[Path], None]) -> None:
    room = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        build(room / target.name)
        (room / target.name).rename(target)
    finally:
        shutil.rmtree(room, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock file, and holds it."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
