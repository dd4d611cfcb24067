"""``asyncflow top``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.cli.options import parse

_DESCRIPTION = """Shows what a run is doing and what it waits for, from its topics and Prometheus endpoints.

A live screen on a terminal, else one line every 10 s. It only reads: watching changes nothing. The endpoints of a run
on this machine are found from its directory and those of workers from the log; name others with --metrics. The log of
a finished run is served while it is shown. Ctrl-C ends it. Examples:

  asyncflow top demo
  asyncflow top prod --bootstrap kafka-1:9092 --metrics http://learner:9101 http://rollout:9100
  asyncflow top --config prod.toml --once --json
"""


@dataclass(frozen=True)
class TopOptions:
    """Arguments of the verb."""

    run: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="NAME")]] = None
    """Directory or name of the run."""
    bootstrap: str | None = None
    """Brokers as host:port, for a run without a directory here; by default those of its configuration."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with the run's configuration, instead of NAME: of a run without a directory here whose brokers ask who
    one is (kafka.client)."""
    metrics: Annotated[tuple[str, ...], tyro.conf.arg(metavar="URL...")] = ()
    """Further Prometheus endpoints of its processes; /metrics may be left out."""
    once: bool = False
    """Look for two seconds, print one line, and end."""
    json: bool = False
    """Print snapshots as JSON, one a line, instead of a screen."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(TopOptions, "top", arguments, _DESCRIPTION)
    from pipelines.top.screen import run

    given = (options.run, options.bootstrap, options.config)
    return run(given, options.metrics, once=options.once, as_json=options.json)
