"""``asyncflow audit``."""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from pipelines.cli.options import parse

_DESCRIPTION = """Checks every promise of a run from its topics alone and prints one JSON verdict.

Exit code 0 if all hold, 1 if one does not. The log of a finished run is served for the time of the audit. Example:

  asyncflow audit runs/demo
"""


@dataclass(frozen=True)
class AuditOptions:
    """Arguments of the verb."""

    run: tyro.conf.Positional[str]
    """Directory or name of the run."""
    bootstrap: str | None = None
    """Brokers as host:port, for a run without a directory here; by default those of its configuration."""
    json: bool = False
    """Taken, so that programs can say it everywhere: what is printed is JSON in any case."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(AuditOptions, "audit", arguments, _DESCRIPTION)
    from pipelines.audit import run

    return run(options.run, options.bootstrap)
