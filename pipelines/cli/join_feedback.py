"""``asyncflow join-feedback``."""

from collections.abc import Sequence

from pipelines.cli.dry_run import dry_run
from pipelines.cli.options import parse_start_and_rest

_DESCRIPTION = """The feedback pipeline: joins what people and programs say with the answers they say it of.

What is not listed here goes to Beam, such as --runner (PrismRunner if it is not given). It ends on SIGTERM and Ctrl-C;
started anew it goes on where it was. Examples:

  asyncflow join-feedback --config runs/demo/config.toml
  asyncflow join-feedback --config run.toml --runner=FlinkRunner --flink_master=flink:8081 \\
      --environment_type=EXTERNAL --environment_config=127.0.0.1:50000
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options, beam_arguments = parse_start_and_rest("join-feedback", arguments, _DESCRIPTION)
    if options.dry_run:
        from pipelines.submission.checks import rehearse

        return dry_run("join-feedback", options.run, *rehearse("join-feedback", options.run, beam_arguments))
    from pipelines.join_feedback import run

    return run(options.run, beam_arguments)
