"""``asyncflow rollout``."""

from collections.abc import Sequence

from pipelines.cli.dry_run import dry_run
from pipelines.cli.options import parse_start_and_rest

_DESCRIPTION = """The rollout pipeline: has workers answer the prompts of a run, scores the answers and writes them.

What is not listed here goes to Beam, such as --runner (PrismRunner if it is not given). It drains on SIGTERM and
Ctrl-C, or cancels the pipeline where Beam's workers are elsewhere; a second one does not wait. Examples:

  asyncflow rollout --config runs/demo/config.toml
  asyncflow rollout --config run.toml --runner=FlinkRunner --flink_master=flink:8081 \\
      --environment_type=EXTERNAL --environment_config=127.0.0.1:50000
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options, beam_arguments = parse_start_and_rest("rollout", arguments, _DESCRIPTION)
    if options.dry_run:
        from pipelines.submission.checks import rehearse

        return dry_run("rollout", options.run, *rehearse("rollout", options.run, beam_arguments))
    from pipelines.rollout import run

    return run(options.run, beam_arguments)
