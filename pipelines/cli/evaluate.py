"""``asyncflow evaluate``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
import tyro

from pipelines.cli.dry_run import dry_run
from pipelines.cli.interrupts import sigterm_is_ctrl_c
from pipelines.cli.options import StartOptions, base_config, parse
from schemas.checks import Check
from schemas.errors import ConfigError

_DESCRIPTION = """Asks held-out prompts of a run's weights while it trains and writes the figures to its evals topic.

It follows the announced weight versions, beside the learner and without touching it, and ends with code 0 when the
last version is evaluated, or on SIGTERM or Ctrl-C. The best version stays in the weight store. Examples:

  asyncflow evaluate --config runs/demo/config.toml --prompts held-out.jsonl --evaluation.every 5
  asyncflow evaluate --config runs/demo/config.toml --prompts held-out.jsonl --evaluation.samples 16 \\
    --evaluation.pass-at 1 4 16
"""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class EvaluateOptions(StartOptions):
    """Arguments of the verb."""

    prompts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON lines in the form of the prompts topic, none of which is trained. Required."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    default = EvaluateOptions(run=base_config(arguments))
    options = parse(EvaluateOptions, "evaluate", arguments, _DESCRIPTION, default)
    if options.prompts is None:
        raise ConfigError("--prompts FILE is missing: give JSON lines with one held-out prompt each")
    from pipelines.evaluation.follow import follow
    from pipelines.evaluation.prompts import read_held_out

    held_out = read_held_out(options.prompts)
    if options.dry_run:
        said = Check("held-out prompts", f"{len(held_out.prompts)} of {options.prompts}", "ok", "")
        return dry_run("evaluate", options.run, said)
    try:
        with sigterm_is_ctrl_c():
            follow(options.run, held_out)
    except KeyboardInterrupt:
        _log.info("ended", run=options.run.name)
    return 0
