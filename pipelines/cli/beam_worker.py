"""``asyncflow beam-worker``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from pipelines.beam_worker.options import PoolAddress
from pipelines.cli.options import parse

_DESCRIPTION = """Works for a Beam runner that stands elsewhere: the EXTERNAL environment of rollout and join-feedback.

A runner asks it to start workers, which then do what the pipeline says. Nothing of a run is configured here: that
comes with the pipeline. Whoever reaches the port can run code, so it listens on the loopback interface unless --host
says otherwise. It ends on SIGTERM and Ctrl-C, and its workers with it. Example:

  asyncflow beam-worker --port 50000
  asyncflow rollout --config run.toml --environment_type=EXTERNAL --environment_config=127.0.0.1:50000
"""


@dataclass(frozen=True)
class BeamWorkerOptions:
    """Arguments of the verb."""

    dry_run: bool = False
    """Say where it would listen and what is wrong (exit code 2), and start nothing."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""
    pool: Annotated[PoolAddress, tyro.conf.arg(name="")] = field(default_factory=PoolAddress)


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(BeamWorkerOptions, "beam-worker", arguments, _DESCRIPTION)
    if options.dry_run:
        from pipelines.beam_worker.options import examine
        from pipelines.dry_run.show import tell

        return tell("beam-worker", {"what would be started": list(examine(options.pool))})
    from pipelines.beam_worker.pool import run

    return run(options.pool)
