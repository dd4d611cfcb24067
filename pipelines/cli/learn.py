"""``asyncflow learn``."""

from collections.abc import Sequence

from pipelines.cli.options import parse_process

_DESCRIPTION = """The learner: trains on the trajectories of a run and publishes weight versions.

It ends in good order on SIGTERM and Ctrl-C. Example:

  asyncflow learn --config runs/demo/config.toml --learner.steps 48
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    config = parse_process("learn", arguments, _DESCRIPTION)
    from trainers.learn import run

    return run(config)
