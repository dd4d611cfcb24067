"""Calling the command line in tests, and what a refusal looks like."""

import contextlib
import subprocess
import sys
from collections.abc import Callable

from pipelines.cli.main import main


def in_process_of_its_own(*arguments, cwd=None):
    """Runs the command as a person would."""
    command = [sys.executable, "-m", "pipelines.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd, check=False)


def caller(capsys) -> Callable[..., subprocess.CompletedProcess]:
    """Runs the command here, which is faster; whatever it raises but does not tell fails the test."""

    def call(*arguments, cwd="."):
        try:
            with contextlib.chdir(cwd):
                code = main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = exit_.code
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    return call


def refused(done, *parts):
    """It ended with 2, said each of the parts and showed no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
    return True
