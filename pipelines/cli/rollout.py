"""``asyncflow rollout``."""

from collections.abc import Sequence

from pipelines.cli.dry_run import dry_run
from pipelines.cli.options import parse_start_and_rest

_DESCRIPTION = """The rollout pipeline: has workers answer the prompts of a run, scores the answers and writes them.

What is not listed here goes to Beam, such as --runner (PrismRunner if it is not given). It drains on SIGTERM and
Ctrl-C; a second one does not wait. Example:

  asyncflow rollout --config runs/demo/config.toml --runner=FlinkRunner --flink_master=127.0.0.1:8081
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options, beam_arguments = parse_start_and_rest("rollout", arguments, _DESCRIPTION)
    if options.dry_run:
        return dry_run("rollout", options.run)
    from pipelines.rollout import run

    return run(options.run, beam_arguments)
