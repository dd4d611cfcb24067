"""Makes a bundle: everything staged in one directory, then cut into parts."""

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

import pipelines
from pipelines.bundle.install import sha256_of
from pipelines.bundle.lock import read_lock
from pipelines.bundle.parts import require_part_bytes, write_bundle
from pipelines.bundle.wheels import build, download, require_pip, requirements
from pipelines.local.broker import kafka_jars
from pipelines.local.paths import make_directory
from pipelines.local.prism import cache_name, find_prism
from schemas.errors import ConfigError, ModelError

Platform = Literal["cpu", "cuda"]

_CHECKOUT: Final = Path(pipelines.__file__).parents[1]
_MACHINE: Final = "x86_64"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a bundle is to hold, and for whom."""

    target: Path
    """A directory that does not exist, or is empty."""
    python: str = "3.12"
    """Of the machine that is installed on."""
    platform: Platform = "cpu"
    """Which of the locked requirements."""
    glibc: str = "2.35"
    """Of the oldest system that is installed on."""
    part_bytes: int = 2_000_000_000
    """Most bytes of a part."""
    requirements: Path | None = None
    """Locked requirements instead of the checkout's."""
    model: Path | None = None
    """A model's directory to take along."""


@dataclass(frozen=True, slots=True)
class Made:
    """A bundle that was written."""

    parts: int
    size_bytes: int
    """Of all parts."""
    packages: int
    manifest_sha256: str
    install_sha256: str
    """Of ``install.py``, which compares everything else: so it is compared before it is run."""


def make_bundle(wanted: Wanted) -> Made:
    """Writes a bundle. What is missing of Kafka and Prism is downloaded into the cache first.

    Raises:
        ConfigError: the directory is not empty, this is no checkout, requirements are not locked, or parts are too
            small.
        ModelError: the model to take along is none.
        UserError: something cannot be downloaded or built.
        DiskError: the directory cannot be created.
    """
    checkout = _checkout()
    lock = wanted.requirements or checkout / "deploy" / "requirements" / f"{wanted.platform}.txt"
    pinned = read_lock(lock, wanted.python)
    require_pip(pinned, lock)
    require_part_bytes(wanted.part_bytes)
    if wanted.model is not None:
        _require_model(wanted.model)
    target = _empty(wanted.target)
    with TemporaryDirectory(prefix=".staged-", dir=target.parent) as room:
        staged = Path(room)
        download(pinned, staged / "wheels", wanted.python, wanted.glibc)
        build(_copied(checkout, staged / "source"), staged / "wheels")
        shutil.rmtree(staged / "source")
        (staged / "download.txt").unlink()
        (staged / "requirements.txt").write_text(requirements(staged / "wheels"))
        _stage_cache(staged / "cache")
        if wanted.model is not None:
            shutil.copytree(wanted.model, staged / "models" / wanted.model.resolve().name)
        digest = write_bundle(staged, target, wanted.part_bytes, _about(wanted))
    sizes = [part.stat().st_size for part in target.glob("part-*")]
    return Made(len(sizes), sum(sizes), len(pinned) + 1, digest, sha256_of(target / "install.py"))


def _about(wanted: Wanted) -> dict[str, str]:
    return {
        "asyncflow": version("asyncflow-rl"),
        "python": wanted.python,
        "platform": wanted.platform,
        "glibc": wanted.glibc,
        "machine": _MACHINE,
    }


def _checkout() -> Path:
    if not (_CHECKOUT / "pyproject.toml").is_file():
        raise ConfigError(
            f"{_CHECKOUT} is no checkout of asyncflow; make bundles with the asyncflow of one (make .venv)"
        )
    return _CHECKOUT


def _empty(target: Path) -> Path:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is not an empty directory; give one that does not exist yet")
    return make_directory(target)


def _copied(checkout: Path, target: Path) -> Path:
    """What the wheel is made of, apart from the checkout: a build leaves files where it works."""
    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(checkout / name, target / name)
    for name in ("schemas", "transforms", "trainers", "pipelines"):
        shutil.copytree(checkout / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def _stage_cache(target: Path) -> None:
    """Kafka's jars and Prism, under the names that the cache has them by."""
    target.mkdir()
    jars = kafka_jars()
    shutil.copytree(jars, target / jars.name)
    shutil.copy2(find_prism(), target / cache_name())


def _require_model(model: Path) -> None:
    if not (model / "config.json").is_file():
        raise ModelError(f"{model} has no config.json; give a model's directory with --model")
