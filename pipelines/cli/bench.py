"""``asyncflow bench``."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import tyro

from pipelines.cli.options import parse
from schemas.errors import ConfigError, RunError
from schemas.suggestions import did_you_mean

_ROOT: Final = Path(__file__).parents[2]
_BENCHMARKS: Final = _ROOT / "tests" / "benchmarks"
_DESCRIPTION = """Runs a benchmark of a checkout and ends with its code, which is 1 if a figure misses its bar.

What stands after the name is the benchmark's own; ask it with --help. Most print one JSON object. Where each figure
stands is in docs/benchmarks.md. Without a name it lists the benchmarks. Examples:

  asyncflow bench
  asyncflow bench generation
  asyncflow bench arithmetic --seeds 0 1 --seconds 420
"""


@dataclass(frozen=True)
class BenchOptions:
    """Arguments of the verb, those of the benchmark aside."""

    name: tyro.conf.Positional[str] = ""
    """Which one."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code; this process becomes the benchmark."""
    name = parse(BenchOptions, "bench", arguments[:1], _DESCRIPTION).name
    if not _BENCHMARKS.is_dir():
        raise RunError("benchmarks come with a checkout of the project, not with the installed package: clone it")
    known = find_benchmarks(_BENCHMARKS)
    if not name:
        sys.stdout.write("".join(f"{each:<13} {summary}\n" for each, summary in known.items()))
        return 0
    if name not in known:
        raise ConfigError(f"no benchmark {name!r}; {did_you_mean(name, known)}")
    return _become([sys.executable, "-m", f"tests.benchmarks.{name}", *arguments[1:]])


def _become(command: list[str]) -> NoReturn:
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    environment = {"HF_HUB_OFFLINE": "1", **os.environ, "PYTHONPATH": path}
    os.execve(sys.executable, command, environment)  # noqa: S606 - our own interpreter and module


def find_benchmarks(directory: Path) -> dict[str, str]:
    """Those modules of a directory that are programs, with the first sentence or line of what they say."""
    found = {}
    for file in sorted(directory.glob("*.py")):
        text = file.read_text()
        if '__name__ == "__main__"' in text:
            told = re.match(r'"""(.+?)(?:\.\s|\.?"""|\n)', text)
            found[file.stem] = told[1] if told else ""
    return found
