"""``asyncflow audit``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.cli.options import parse

_DESCRIPTION = """Checks every promise of a run from its topics alone and prints one JSON verdict.

Exit code 0 if all hold, 1 if one does not. The log of a finished run is served for the time of the audit. Example:

  asyncflow audit runs/demo
  asyncflow audit --config prod.toml
"""


@dataclass(frozen=True)
class AuditOptions:
    """Arguments of the verb."""

    run: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="NAME")]] = None
    """Directory or name of the run."""
    bootstrap: str | None = None
    """Brokers as host:port, for a run without a directory here; by default those of its configuration."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with the run's configuration, instead of NAME: of a run without a directory here whose brokers ask who
    one is (kafka.client)."""
    json: bool = False
    """Taken, so that programs can say it everywhere: what is printed is JSON in any case."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(AuditOptions, "audit", arguments, _DESCRIPTION)
    from pipelines.audit import run

    return run(options.run, options.bootstrap, options.config)
