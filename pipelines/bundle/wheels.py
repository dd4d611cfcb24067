"""Wheels for another machine, through pip.

    [Pinned] ──pip download──► files whose hashes the lock knows ──pip wheel (of sources)──► wheels
    checkout ──pip wheel──► its own                                                            └──► requirements.txt

The requirements that travel name each wheel by its own sha256, so that pip checks it again where it is installed.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog
from packaging.utils import canonicalize_name, parse_wheel_filename

from pipelines.bundle.lock import Pinned
from schemas.errors import ConfigError, UserError

_PIP: Final = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
_OLDEST_GLIBC: Final = 5
"""Of the wheels that say manylinux_2_5, also called manylinux1."""
_log = structlog.get_logger(__name__)


def download(pinned: Sequence[Pinned], wheels: Path, python: str, glibc: str) -> None:
    """Puts a wheel of each package into a new directory; packages that come as sources are built.

    Raises:
        UserError: pip cannot get one, or one whose wheel would only fit this machine.
    """
    wheels.mkdir(parents=True)
    listed = wheels.with_name("download.txt")
    listed.write_text("".join(f"{each.line()}\n" for each in pinned))
    _log.info("downloading wheels", packages=len(pinned), python=python, glibc=glibc)
    platforms = [part for each in _platforms(glibc) for part in ("--platform", each)]
    _pip(
        "download", "--no-deps", "--require-hashes", "--no-build-isolation", "--implementation", "cp",
        "--python-version", python, *platforms, "--dest", str(wheels), "--requirement", str(listed),
    )  # fmt: skip
    for source in sorted(wheels.glob("*.tar.gz")) + sorted(wheels.glob("*.zip")):
        build(source, wheels)
        source.unlink()


def build(source: Path, wheels: Path) -> None:
    """Makes a wheel of a source archive or a checkout, with the build tools that are installed here.

    Raises:
        UserError: it cannot be built, or only for this machine's Python.
    """
    before = set(wheels.glob("*.whl"))
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(wheels), str(source))
    for made in set(wheels.glob("*.whl")) - before:
        if not made.name.endswith("-none-any.whl"):
            raise UserError(
                f"{made.name} was built of {source.name} and fits only this machine; lock a version with wheels"
            )


def requirements(wheels: Path) -> str:
    """The requirements file of a directory's wheels, each with its sha256."""
    lines = []
    for wheel in sorted(wheels.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(wheel.name)
        with wheel.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        lines.append(f"{Pinned(name, str(version), (digest,)).line()}\n")
    return "".join(lines)


def require_pip(pinned: Sequence[Pinned], file: Path) -> None:
    """The other machine has no pip but the bundle's.

    Raises:
        ConfigError: there is none among the packages.
    """
    if not any(canonicalize_name(each.name) == "pip" for each in pinned):
        raise ConfigError(f"{file} has no pip, with which a bundle is installed; add it to what is locked")


def _platforms(glibc: str) -> list[str]:
    """Every tag of wheels that run with a glibc, the newest first. Example: ``manylinux_2_28_x86_64``."""
    major, _, minor = glibc.partition(".")
    if major != "2" or not minor.isdigit():
        raise ConfigError(f"--glibc {glibc}: expected a version such as 2.35 (ldd --version tells the other machine's)")
    tags = [f"manylinux_2_{each}_x86_64" for each in range(int(minor), _OLDEST_GLIBC - 1, -1)]
    return [*tags, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]


def _pip(*arguments: str) -> None:
    environment = {**os.environ, "DS_BUILD_OPS": "0"}  # DeepSpeed's own compile where they are used
    done = subprocess.run([*_PIP, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        told = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no message")
        raise UserError(f"pip {arguments[0]} failed: {told}; see whether the index is reached, and has these versions")
