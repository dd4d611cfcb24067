"""``asyncflow replay``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.cli.options import parse

_DESCRIPTION = """Trains a step of a run again and compares the weights, bit for bit, with what the run announced.

It begins with the newest checkpoint before the step, or with the model as it was before the run, reads the
groups that the ledger names from the log, and writes nothing to the run. Prints one JSON object. Exit code 0
if the weights are equal, 1 if they are not. The log of a finished run is served for the time. Example:

  asyncflow replay runs/demo --step 12
"""


@dataclass(frozen=True)
class ReplayOptions:
    """Arguments of the verb."""

    run: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="NAME")]] = None
    """Directory or name of the run."""
    step: int | None = None
    """The step; by default the last one."""
    bootstrap: str | None = None
    """Brokers as host:port; by default those of the run's configuration."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with the run's configuration, instead of NAME: of a run without a directory here whose brokers ask who
    one is (kafka.client)."""
    json: bool = False
    """Taken, so that programs can say it everywhere: what is printed is JSON in any case."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(ReplayOptions, "replay", arguments, _DESCRIPTION)
    from pipelines.runs import served

    with served(options.run, options.bootstrap, options.config) as config:
        from trainers.ranks import Ranks
        from trainers.replay import replay

        ranks = Ranks()
        try:
            found = replay(config, ranks, options.step)
        finally:
            ranks.leave()
    sys.stdout.write(f"{found.model_dump_json(indent=2)}\n")
    return 0 if found.equal else 1
