"""``asyncflow submit``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.cli.options import parse
from pipelines.submit import read_lines, submit
from schemas.config import RunConfig, load
from schemas.errors import ConfigError

_DESCRIPTION = """Writes the prompts of a JSON-lines file to a run and prints how many.

Each line is written as it is: one that is no valid prompt becomes a dead letter of the run. Name the run by its
directory or name, or by a configuration file. Examples:

  asyncflow submit prompts.jsonl --run demo
  asyncflow submit prompts.jsonl --run prod --bootstrap kafka-1:9092
"""


@dataclass(frozen=True)
class SubmitOptions:
    """Arguments of the verb."""

    file: tyro.conf.Positional[Path]
    """JSON lines in the form of the prompts topic."""
    run: str | None = None
    """Directory or name of the run."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with the run's configuration, instead of --run."""
    bootstrap: str | None = None
    """Brokers as host:port; by default those of the run's configuration."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(SubmitOptions, "submit", arguments, _DESCRIPTION)
    count = submit(_find_run(options), read_lines(options.file))
    sys.stdout.write(f"{count} prompts\n")
    return 0


def _find_run(options: SubmitOptions) -> RunConfig:
    from pipelines.runs import find_config, with_bootstrap

    if (options.run is None) == (options.config is None):
        raise ConfigError("name the run by exactly one of --run and --config")
    if options.run is not None:
        return find_config(options.run, options.bootstrap)[0]
    assert options.config is not None
    return with_bootstrap(load(options.config), options.bootstrap)
