"""``asyncflow worker``."""

from collections.abc import Sequence

from pipelines.cli.options import parse_process

_DESCRIPTION = """A vLLM worker: answers prompts with the newest announced weights.

It ends in good order on SIGTERM and Ctrl-C. Example:

  asyncflow worker --config runs/demo/config.toml --worker.port 8001
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    config = parse_process("worker", arguments, _DESCRIPTION)
    from transforms.generation.worker.server import run

    return run(config)
