"""Installs a bundle of AsyncFlow on this machine, without a network.

    python3 install.py --to /opt/asyncflow

    manifest.json ──► this Python and machine fit ──► every part's sha256 ──► files, every one's sha256
                                                                                  └──► environment, cache, models

This file lies in the bundle and is all that runs there: it needs Python's standard library and nothing else.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
_KEYS: Final = ("python", "machine", "glibc", "parts", "files")
_CHUNK_BYTES: Final = 1 << 20


class Unfit(Exception):
    """The bundle is damaged, or not for this machine: said in words."""


def main(arguments: list[str] | None = None) -> int:
    """Installs and returns the exit code: 2 with one message where something has to be mended."""
    options = _options(arguments)
    try:
        manifest = read_manifest(options.bundle, options.manifest_sha256)
        check_parts(options.bundle, manifest)
        if not options.check:
            check_machine(manifest)
            install(options.bundle, manifest, options.to, options.cache)
    except Unfit as fault:
        sys.stderr.write(f"install.py: {fault}\n")
        return 2
    except tarfile.TarError as fault:
        sys.stderr.write(f"install.py: the parts are no archive ({fault}); make the bundle again\n")
        return 2
    except OSError as fault:
        sys.stderr.write(f"install.py: {fault.filename or 'a file'}: {fault.strerror}; make room or choose a place\n")
        return 2
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Installs this bundle of AsyncFlow, without a network.")
    parser.add_argument("--to", type=Path, default=Path("asyncflow"), help="new directory for the environment")
    parser.add_argument("--cache", type=Path, default=_cache(), help="where Kafka's jars and Prism go")
    parser.add_argument("--check", action="store_true", help="only compare sizes and hashes of the parts")
    parser.add_argument("--manifest-sha256", help="what asyncflow bundle printed")
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parent, help="where the parts are")
    return parser.parse_args(arguments)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "asyncflow"


def read_manifest(bundle: Path, sha256: str | None = None) -> dict[str, Any]:
    """What the bundle holds.

    Raises:
        Unfit: it is missing, cut off, of another format, or not the one whose sha256 was given.
    """
    file = bundle / MANIFEST
    if not file.is_file():
        raise Unfit(f"{file} is missing; copy the bundle whole, or say where it is with --bundle")
    text = file.read_bytes()
    if sha256 is not None and hashlib.sha256(text).hexdigest() != sha256:
        raise Unfit(f"{file} has another sha256 than {sha256}: it was changed since it was made; copy it again")
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise Unfit(f"{file} cannot be read ({error}); copy it again") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise Unfit(f"{file} is of format {found}, expected {FORMAT}; use the bundle's own install.py")
    if missing := [key for key in _KEYS if key not in manifest]:
        raise Unfit(f"{file} has no {', '.join(missing)}; copy it again")
    return dict(manifest)


def check_machine(manifest: dict[str, Any]) -> None:
    """Compares this Python and machine with those that the bundle is for.

    Raises:
        Unfit: they are others.
    """
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if here != manifest["python"]:
        raise Unfit(
            f"this is Python {here}, the bundle is for {manifest['python']}: python{manifest['python']} install.py"
        )
    if platform.machine() != manifest["machine"] or sys.platform != "linux":
        raise Unfit(f"this is {sys.platform} on {platform.machine()}, the bundle is for Linux on {manifest['machine']}")
    glibc = platform.libc_ver()[1]
    if glibc and _numbers(glibc) < _numbers(manifest["glibc"]):
        raise Unfit(
            f"this system has glibc {glibc}, the bundle needs {manifest['glibc']}; make one with --glibc {glibc}"
        )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:2]]


def check_parts(bundle: Path, manifest: dict[str, Any]) -> None:
    """Compares the size and sha256 of every part.

    Raises:
        Unfit: naming each part that is missing or differs.
    """
    faults = [fault for part in manifest["parts"] if (fault := _fault(bundle, part))]
    if faults:
        raise Unfit("the bundle is not whole:\n  " + "\n  ".join(faults) + "\ncopy these again")
    total = sum(part["size"] for part in manifest["parts"])
    _say(f"{len(manifest['parts'])} parts, {total:,} bytes: as they were made")


def _fault(bundle: Path, part: dict[str, Any]) -> str | None:
    file = bundle / part["name"]
    if not file.is_file():
        return f"{part['name']} is missing"
    if file.stat().st_size != part["size"]:
        return f"{part['name']} has {file.stat().st_size:,} bytes, expected {part['size']:,}"
    return None if sha256_of(file) == part["sha256"] else f"{part['name']} has another sha256"


def sha256_of(file: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def install(bundle: Path, manifest: dict[str, Any], to: Path, cache: Path) -> None:
    """Makes the environment, and puts jars, Prism and models into their places.

    Raises:
        Unfit: ``to`` exists, a file differs, or pip refuses.
    """
    if to.exists() and any(to.iterdir()):
        raise Unfit(f"{to} is not empty; give a new directory with --to")
    to.mkdir(parents=True, exist_ok=True)
    staged = to / ".bundle"
    try:
        _unpack(bundle, manifest, staged)
        _make_environment(staged, to)
        _place(staged / "cache", cache)
        _place(staged / "models", to / "models")
    except BaseException:  # it was empty: the same command may be given again
        _remove(list(to.iterdir()))
        raise
    _remove([staged])
    _say(f"installed: {to / 'bin' / 'asyncflow'} demo")


def _unpack(bundle: Path, manifest: dict[str, Any], staged: Path) -> None:
    expected = {file["name"]: file["sha256"] for file in manifest["files"]}
    stream = io.BufferedReader(_Joined(bundle / part["name"] for part in manifest["parts"]), _CHUNK_BYTES)
    with stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None  # a link is none
            if content is None or member.name not in expected or not _stays_below(member.name):
                raise Unfit(f"{member.name} is not a file of the manifest; make the bundle again")
            if _write(content, staged / member.name, member.mode) != expected.pop(member.name):
                raise Unfit(f"{member.name} has another sha256 than the manifest says; make the bundle again")
    if expected:
        raise Unfit(f"{len(expected)} files are missing, such as {min(expected)}; make the bundle again")
    _say(f"{len(manifest['files'])} files: as they were made")


def _stays_below(name: str) -> bool:
    """Whether it lies in the directory that it is put into."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _write(content: IO[bytes], target: Path, mode: int) -> str:
    """Writes one file below the directory that everything goes to, and returns its sha256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("wb") as file:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    target.chmod(0o755 if mode & 0o100 else 0o644)
    return digest.hexdigest()


class _Joined(io.RawIOBase):
    """Files one after the other, as one stream to read."""

    def __init__(self, files: Iterator[Path]) -> None:
        self._files = iter(files)
        self._open: io.BufferedReader | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._open is None:
                file = next(self._files, None)
                if file is None:
                    return 0
                self._open = file.open("rb")
            count = self._open.readinto(buffer)
            if count:
                return count
            self._open.close()
            self._open = None


def _make_environment(staged: Path, to: Path) -> None:
    venv.create(to, symlinks=True, with_pip=False)
    wheels = staged / "wheels"
    (pip,) = wheels.glob("pip-*.whl")  # a wheel can be run as it is: a system without ensurepip needs no pip
    python = [str(to / "bin" / "python"), str(pip / "pip"), "--isolated"]
    command = [*python, "install", "--no-index", "--find-links", str(wheels)]
    options = ["--no-deps", "--require-hashes", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    _say("installing; this takes some minutes")
    done = subprocess.run([*command, *options, "--requirement", str(staged / "requirements.txt")], check=False)
    if done.returncode:
        raise Unfit(f"pip ended with {done.returncode}, see above")


def _place(source: Path, target: Path) -> None:
    """Moves what lies in one directory into another, but for what is there already; nothing is ever there in half."""
    for each in sorted(source.iterdir()) if source.is_dir() else []:
        if not (target / each.name).exists():
            target.mkdir(parents=True, exist_ok=True)
            part = target / f".{each.name}.part"
            _remove([part])  # of an installation that was killed
            shutil.move(each, part)
            part.replace(target / each.name)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
