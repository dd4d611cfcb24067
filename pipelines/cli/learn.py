"""``asyncflow learn``."""

from collections.abc import Sequence

from pipelines.cli.dry_run import dry_run
from pipelines.cli.options import parse_start

_DESCRIPTION = """The learner: trains on the trajectories of a run and publishes weight versions.

It ends in good order on SIGTERM and Ctrl-C. Example:

  asyncflow learn --config runs/demo/config.toml --learner.steps 48
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse_start("learn", arguments, _DESCRIPTION)
    if options.dry_run:
        return dry_run("learn", options.run)
    from trainers.learn import run

    return run(options.run)
