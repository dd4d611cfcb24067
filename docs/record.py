"""Writes docs/screenshots/cli-*.svg: what a terminal shows of the commands below.

    commands ──in an empty directory──► their output, colours and codes ──rich──► SVG      python docs/record.py

It is run by hand when the command line changes, and what it wrote is looked at.
"""

import os
import platform
import pty
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

SCREENSHOTS: Final = Path(__file__).parent / "screenshots"
COLUMNS: Final = 112
BIN: Final = Path(sys.executable).parent
_READ_BYTES: Final = 1 << 16

RECORDINGS: Final[dict[str, tuple[str, ...]]] = {
    "help": ("asyncflow --help",),
    "doctor": ("asyncflow doctor",),
    "check": ("asyncflow config check --preset cpu-small", "asyncflow config diff preset:cpu-small preset:gpu-1"),
    "rehearsal": ("asyncflow up --preset cpu-small --name sums --prompts sums.jsonl --dry-run",),
    "mistakes": (
        "asyncflow lern",
        "asyncflow learn --learner.stpes 3",
        "asyncflow learn --learner.steps three",
        "asyncflow learn --learner.objective.name pposs",
        "asyncflow learn --config mine.toml",
        "asyncflow submit glu --data . --run sums",
        "asyncflow audit sums",
        "asyncflow up --name sums/1",
        "asyncflow topics --kafka.bootstrap 127.0.0.1:9",
        "asyncflow bench speed",
    ),
}
FILES: Final = {
    "sums.jsonl": '{"text": "2+3=", "reward": {"name": "last_number", "args": {"answer": "5"}}}\n',
    "mine.toml": '[learner]\nsteps = 20\n\n[rollout]\ngroup_sise = 8\n',
}  # fmt: skip


def run(command: str, directory: Path) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    path = f"{BIN}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    with subprocess.Popen(
        shlex.split(command), cwd=directory, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ):
        os.close(theirs)
        told = b""
        try:
            while read := os.read(ours, _READ_BYTES):
                told += read
        except OSError:  # how Linux says that nobody has the other end
            pass
    os.close(ours)
    text = told.decode().replace("\r\n", "\n").replace(str(Path.home()), "~")
    release = ".".join(platform.release().split(".")[:2])  # the rest is of this machine alone
    return text.replace(str(directory), ".").replace(platform.release(), release).rstrip()


def record(name: str, commands: tuple[str, ...], directory: Path) -> None:
    """Writes the SVG of some commands."""
    with open(os.devnull, "w") as nothing:
        console = Console(record=True, width=COLUMNS, file=nothing, force_terminal=True)
        for number, command in enumerate(commands):
            console.print(Text(f"{chr(10) if number else ''}$ {command}", style="bold green"))
            console.print(Text.from_ansi(run(command, directory)))
        console.save_svg(str(SCREENSHOTS / f"cli-{name}.svg"), title="asyncflow")


def main() -> None:
    """Records everything."""
    with tempfile.TemporaryDirectory() as made:
        for name, text in FILES.items():
            Path(made, name).write_text(text)
        for name, commands in RECORDINGS.items():
            record(name, commands, Path(made))


if __name__ == "__main__":
    main()
