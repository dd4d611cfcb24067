"""``asyncflow worker``."""

from collections.abc import Sequence

from pipelines.cli.dry_run import dry_run
from pipelines.cli.options import parse_start

_DESCRIPTION = """A vLLM worker: answers prompts with the newest announced weights.

It ends in good order on SIGTERM and Ctrl-C. Example:

  asyncflow worker --config runs/demo/config.toml --worker.port 8001
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse_start("worker", arguments, _DESCRIPTION)
    if options.dry_run:
        return dry_run("worker", options.run)
    from transforms.generation.worker.server import run

    return run(options.run)
