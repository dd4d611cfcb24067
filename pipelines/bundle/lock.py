"""Locked requirements, as they hold on another machine.

deploy/requirements/cpu.txt ──► [Pinned(name, version, sha256s)] of one Python
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement

from schemas.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pinned:
    """One package. Example: ``Pinned("numpy", "2.3.5", ("…",))``."""

    name: str
    version: str
    sha256s: tuple[str, ...]
    """Of every file of that version that may be installed."""

    def line(self) -> str:
        """As pip's requirements files have it."""
        return " ".join([f"{self.name}=={self.version}", *(f"--hash=sha256:{each}" for each in self.sha256s)])


def read_lock(file: Path, python: str) -> list[Pinned]:
    """What of a requirements file holds for a Python on Linux and x86-64.

    Args:
        file: with versions and hashes, as ``make lock`` writes it.
        python: such as ``3.12``.

    Raises:
        ConfigError: it cannot be read, or a package has no version or no hash.
    """
    try:
        text = file.read_text()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; give a file with locked requirements (--requirements)") from error
    return list(_pinned(text, file, _environment(python)))


def _pinned(text: str, file: Path, environment: dict[str, str]) -> Iterator[Pinned]:
    for line in re.sub(r"\\\n", " ", text).splitlines():
        said = re.split(r"\s+#|^#", line, maxsplit=1)[0].strip()
        if not said:
            continue
        requirement, *hashes = re.split(r"\s+--hash=sha256:", said)
        found = _requirement(requirement, file)
        versions = [each.version for each in found.specifier if each.operator == "=="]
        if len(versions) != 1 or not hashes:
            raise ConfigError(f"{file}: {requirement!r} has no version or no hash; give what make lock writes")
        if found.marker is None or found.marker.evaluate(environment):
            yield Pinned(found.name, versions[0], tuple(hashes))


def _requirement(text: str, file: Path) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise ConfigError(f"{file}: {text!r} is no requirement; give what make lock writes") from error


def _environment(python: str) -> dict[str, str]:
    """What markers ask of the machine that is installed on. Its last release is unknown, and no lock asks for it."""
    there = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
    }
    return {**{key: str(value) for key, value in default_environment().items()}, **there}
