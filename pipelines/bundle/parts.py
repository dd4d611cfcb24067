"""Staged files as one tar stream, cut into parts, with a manifest.

files ──tar──► part-000 │ part-001 │ …        manifest.json: size and sha256 of each part and each file
"""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any, Final

from pipelines.bundle import install
from schemas.errors import ConfigError

SMALLEST_PART_BYTES: Final = 1 << 16
_NOBODY: Final = 0


def require_part_bytes(part_bytes: int) -> None:
    """Refuses parts of which there would be very many.

    Raises:
        ConfigError: with the least that is taken.
    """
    if part_bytes < SMALLEST_PART_BYTES:
        raise ConfigError(f"--part-bytes {part_bytes:,}: expected {SMALLEST_PART_BYTES:,} or more")


def write_bundle(staged: Path, target: Path, part_bytes: int, about: dict[str, str]) -> str:
    """Writes parts, manifest and ``install.py`` into a directory.

    Args:
        staged: what goes into the bundle.
        target: a directory that exists and is empty.
        part_bytes: most bytes of a part, as :func:`require_part_bytes` takes them.
        about: what the manifest says besides, such as the Python that the bundle is for.

    Returns:
        The sha256 of the manifest.
    """
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    with Parts(target, part_bytes) as parts, tarfile.open(fileobj=parts, mode="w|") as archive:
        for file in files:
            archive.add(file, str(file.relative_to(staged)), filter=_without_owner)
    manifest = {
        "format": install.FORMAT,
        **about,
        "parts": parts.written,
        "files": [_entry(file, str(file.relative_to(staged))) for file in files],
    }
    shutil.copyfile(install.__file__, target / "install.py")
    text = json.dumps(manifest, indent=1).encode() + b"\n"
    (target / install.MANIFEST).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Who made the bundle, and when, is nobody's business there; the same files make the same parts."""
    member.uid = member.gid = member.mtime = _NOBODY
    member.uname = member.gname = ""
    return member


def _entry(file: Path, name: str) -> dict[str, Any]:
    return {"name": name, "size": file.stat().st_size, "sha256": install.sha256_of(file)}


class Parts(io.RawIOBase):
    """A stream to write that begins a new file whenever one is full.

    Attributes:
        written: name, size and sha256 of every part, once it is closed.
    """

    def __init__(self, directory: Path, part_bytes: int) -> None:
        self.written: list[dict[str, Any]] = []
        self._directory, self._part_bytes = directory, part_bytes
        self._begin()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Writes all of it."""
        view = memoryview(data).cast("B")
        length, done = len(view), 0
        while done < length:
            if self._size == self._part_bytes:
                self._end()
                self._begin()
            piece = view[done : done + self._part_bytes - self._size]
            self._file.write(piece)
            self._digest.update(piece)
            self._size += len(piece)
            done += len(piece)
        return length

    def close(self) -> None:
        """Ends the last part."""
        if not self.closed:
            self._end()
        super().close()

    def _begin(self) -> None:
        self._path = self._directory / f"part-{len(self.written):03d}"
        self._file, self._digest, self._size = self._path.open("wb"), hashlib.sha256(), 0

    def _end(self) -> None:
        self._file.close()
        self.written.append({"name": self._path.name, "size": self._size, "sha256": self._digest.hexdigest()})
