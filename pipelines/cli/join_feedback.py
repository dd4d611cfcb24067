"""``asyncflow join-feedback``."""

from collections.abc import Sequence

from pipelines.cli.dry_run import dry_run
from pipelines.cli.options import parse_start_and_rest

_DESCRIPTION = """The feedback pipeline: joins what people and programs say with the answers they say it of.

What is not listed here goes to Beam, such as --runner (PrismRunner if it is not given). It ends on SIGTERM and Ctrl-C;
started anew it goes on where it was. Example:

  asyncflow join-feedback --config runs/demo/config.toml --runner=FlinkRunner --flink_master=127.0.0.1:8081
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options, beam_arguments = parse_start_and_rest("join-feedback", arguments, _DESCRIPTION)
    if options.dry_run:
        return dry_run("join-feedback", options.run)
    from pipelines.join_feedback import run

    return run(options.run, beam_arguments)
