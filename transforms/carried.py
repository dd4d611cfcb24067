"""The user's own files, carried from where a pipeline is built to wherever it is worked on.

    rewards.modules, rollout.environments.modules ──► Carried.of ══ in the pipeline ══► Carried.here ──► modules

Workers of Beam may stand on machines that have none of the user's files. So what ``rewards.modules`` and
``rollout.environments.modules`` name as files travels in the pipeline itself, as it was when that was built. A module
that is named as Python imports it does not travel: it has to be installed where the workers are.
"""

import atexit
import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from schemas.config import RunConfig
from transforms.modules import absolute, is_file


@dataclass(frozen=True)
class Carried:
    """What travels. Example: ``Carried((("my_rewards.py", b"from transforms…"),))``."""

    files: tuple[tuple[str, bytes], ...] = ()
    """Names as the configuration has them, and what the files held."""

    @classmethod
    def of(cls, config: RunConfig) -> "Carried":
        """Reads the files that a configuration names; one that is not there is left to who loads it to complain of."""
        named = dict.fromkeys((*config.rewards.modules, *config.rollout.environments.modules))
        found = [name for name in named if is_file(name) and Path(name).is_file()]
        return cls(tuple((name, Path(name).read_bytes()) for name in found))

    def here(self, config: RunConfig) -> RunConfig:
        """The configuration with names under which this process finds what was carried."""
        if not self.files:
            return config
        with _PLACING:
            places = {name: str(_place(name, content)) for name, content in self.files}
        environments = config.rollout.environments
        environments = environments.model_copy(update={"modules": _renamed(environments.modules, places)})
        rewards = config.rewards.model_copy(update={"modules": _renamed(config.rewards.modules, places)})
        rollout = config.rollout.model_copy(update={"environments": environments})
        return config.model_copy(update={"rewards": rewards, "rollout": rollout})


NOTHING: Final = Carried()
"""Where the configuration names no files."""
_PLACING: Final = threading.Lock()
"""A worker builds several shares at a time, and a cache lets all of them in that find it empty."""


def _renamed(names: Iterable[str], places: dict[str, str]) -> tuple[str, ...]:
    return tuple(places.get(name, name) for name in names)


@cache
def _place(name: str, content: bytes) -> Path:
    """Where this process has a file: at its own place if it is there unchanged, else in a directory of this process."""
    own = Path(absolute(name))
    if own.is_file() and own.read_bytes() == content:
        return own
    directory = _directory() / hashlib.sha256(f"{name}\0".encode() + content).hexdigest()[:16]
    directory.mkdir(exist_ok=True)
    half = directory / f".{own.name}.part"
    half.write_bytes(content)
    return half.replace(directory / own.name)


@cache
def _directory() -> Path:
    """Nobody else may write there: what lies in it is run."""
    made = tempfile.mkdtemp(prefix="asyncflow-modules-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)
