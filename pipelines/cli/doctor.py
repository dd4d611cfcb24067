"""``asyncflow doctor``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pipelines.cli.options import parse
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.doctor.finding import Subject

_DESCRIPTION = """Looks whether this machine can do what a run needs: a verdict a line, and what to do.

Versions, processors and GPUs, memory, disks, limits, clocks, Java, Prism, ports, the sandbox for code, and with a run
or an address its brokers. Nothing is started or changed but a sandbox, for a moment. Exit code 0, or 1 if there is
something to mend. The block at the end is for an issue: without secrets, names of hosts and people, and home
directories. Examples:

  asyncflow doctor
  asyncflow doctor --run demo
  asyncflow doctor --config prod.toml --json
"""


@dataclass(frozen=True)
class DoctorOptions:
    """Arguments of the verb."""

    run: str | None = None
    """Directory or name of a run of this machine, whose brokers and ports are looked at too."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with a run's configuration, instead of --run."""
    bootstrap: str | None = None
    """Brokers as host:port; by default those of the run's configuration."""
    json: bool = False
    """Print JSON instead of lines."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(DoctorOptions, "doctor", arguments, _DESCRIPTION)
    subject = _subject(options)
    from pipelines.doctor.examine import examine
    from pipelines.doctor.report import has_problem, render, to_json

    findings = examine(subject)
    sys.stdout.write((to_json if options.json else render)(findings, subject))
    return 1 if has_problem(findings) else 0


def _subject(options: DoctorOptions) -> "Subject":
    from pipelines.doctor.finding import Subject
    from pipelines.runs import find_config, find_run

    if options.run is not None and options.config is not None:
        raise ConfigError("name the run by one of --run and --config")
    if options.run is not None:
        config, directory = find_config(options.run, options.bootstrap)
        return Subject(config, directory, config.kafka.bootstrap)
    if options.config is None:
        return Subject(bootstrap=options.bootstrap)
    config = find_run(None, options.config, options.bootstrap)
    return Subject(config, None, config.kafka.bootstrap)
