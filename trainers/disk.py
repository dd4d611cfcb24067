"""Writing to disks that may be full, and making sure that what was written is there."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from schemas.errors import DiskError

_CODES: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_WORDS: Final = ("No space left", "os error 28", "PytorchStreamWriter failed", "File too large")
_FULL_BYTES: Final = 1 << 20
"""Below this much room a failure to write is put down to it: PyTorch says "unexpected pos 128 vs 0"."""


@contextmanager
def disk_errors(what: str, where: object) -> Iterator[None]:
    """Turns a full or forbidden disk into a sentence; libraries report it in many ways.

    Raises:
        DiskError: instead of any of them.
    """
    try:
        yield
    except Exception as error:
        known = getattr(error, "errno", None) in _CODES or any(word in str(error) for word in _WORDS)
        if known or _is_full(Path(str(where))):
            raise DiskError(
                f"{what} cannot be written to {where}: {error}; free space there or correct the path"
            ) from error
        raise


def _is_full(path: Path) -> bool:
    existing = next((each for each in (path, *path.parents) if each.exists()), None)
    return existing is not None and shutil.disk_usage(existing).free < _FULL_BYTES


def write_atomically(path: Path, value: bytes) -> None:
    """Creates or replaces a file: a reader sees the whole value or the old one, also after a power failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(value)
    sync(temporary)
    temporary.rename(path)
    sync(path.parent)


def sync_tree(directory: Path) -> None:
    """Makes every file below a directory, and the directories themselves, durable."""
    for path in sorted(directory.rglob("*"), reverse=True):
        sync(path)
    sync(directory)


def sync(path: Path) -> None:
    """Makes one file or directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
