"""``asyncflow gateway``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from pipelines.cli.dry_run import dry_run
from pipelines.cli.interrupts import sigterm_is_ctrl_c
from pipelines.cli.options import StartOptions, base_config, parse, peek
from schemas.config import RunConfig
from schemas.errors import ConfigError

_DESCRIPTION = """The gateway: a web page to chat with the newest weights and judge their answers, OpenAI's route for
programs, and POST /feedback.

Every answer becomes a rollout of the run that waits for feedback. It ends in good order on SIGTERM and Ctrl-C.
Examples:

  asyncflow gateway --run demo
  asyncflow gateway --config runs/demo/config.toml --gateway.port 8090 --feedback.key-file receipts.key
"""


@dataclass(frozen=True)
class GatewayOptions(StartOptions):
    """Arguments of the verb."""

    of: Annotated[str | None, tyro.conf.arg(name="run", metavar="RUN")] = None
    """Directory or name of a run of this machine, instead of --config."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    default = GatewayOptions(run=_base(arguments))
    options = parse(GatewayOptions, "gateway", arguments, _DESCRIPTION, default)
    if options.dry_run:
        return dry_run("gateway", options.run)
    from pipelines.gateway.serve import run

    try:
        with sigterm_is_ctrl_c():  # until it serves and looks after signals itself
            return run(options.run)
    except KeyboardInterrupt:
        return 0


def _base(arguments: Sequence[str]) -> RunConfig:
    """The configuration that flags are laid over."""
    name = peek(arguments, "--run")
    if name is None:
        return base_config(arguments)
    if peek(arguments, "--config") or peek(arguments, "--preset"):
        raise ConfigError("name the run by one of --run and --config, without --preset")
    from pipelines.runs import find_config

    return find_config(name)[0]
