"""The project as others have it: the built wheel in an environment of its own, far from the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "transforms", "trainers", "pipelines")


@dataclass(frozen=True)
class Installed:
    """A virtual environment whose packages of ours come from the wheel alone."""

    wheel: Path
    bin: Path
    elsewhere: Path
    """An empty directory to work in."""

    def start(self, *command, log):
        """Starts a program of it, elsewhere, so that nothing of the checkout is found."""
        return subprocess.Popen(
            [self.bin / command[0], *map(str, command[1:])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.elsewhere,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """Builds the wheel and installs it; what it depends on is taken from this environment."""
    room = tmp_path_factory.mktemp("installed")
    wheel = build_wheel(room)
    _run(sys.executable, "-m", "venv", "--without-pip", room / "venv")
    python = room / "venv" / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    site = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A line that is a path adds that directory, but not what the .pth files in it add, such as this checkout.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = room / "elsewhere"
    elsewhere.mkdir()
    return Installed(wheel, python.parent, elsewhere)


def build_wheel(room):
    """Builds from a copy: setuptools leaves files where it builds, and takes up those that it left."""
    copy = room / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy / name)
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", room, copy)
    (wheel,) = room.glob("*.whl")
    return wheel


def _run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
