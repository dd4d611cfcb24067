"""``asyncflow drill``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from pipelines.cli.interrupts import sigterm_is_ctrl_c
from pipelines.cli.options import parse

_DESCRIPTION = """Hurts a running stack on purpose and checks that nothing is lost and nothing is trained twice.

Starts everything with a tiny model on this machine, strikes it with faults drawn by the seed (processes killed and
stopped, full disks, second learners, damaged records and weights, rubbish from a worker), audits the log meanwhile and
afterwards, and prints one table. Exit code 0 only if every count is 0. Examples:

  asyncflow drill --seed 1 --minutes 10
  asyncflow drill --faults crashes --times 3
  asyncflow drill --faults "kill learner" "full weights" --times 1 --json
"""


@dataclass(frozen=True)
class DrillOptions:
    """Arguments of the verb."""

    seed: int = 0
    """Of the faults' order, the pairs and the prompts."""
    minutes: float = 10.0
    """How long faults are drawn, if --times is not given."""
    times: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Each fault so many times instead."""
    faults: tuple[str, ...] = ("all",)
    """Names of faults; all, crashes (every crash point) or every (both)."""
    baseline_s: float = 30.0
    """Seconds that the run is watched before the first fault, to compare with."""
    name: str | None = None
    """Of the run; by default drill-SEED-TIME."""
    json: bool = False
    """Print the account as JSON."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(DrillOptions, "drill", arguments, _DESCRIPTION)
    import time

    from pipelines.drill.run import Plan, choose, drill_config, run

    choose(options.faults)
    name = options.name or f"drill-{options.seed}-{time.strftime('%H%M%S')}"
    plan = Plan(
        seed=options.seed,
        minutes=options.minutes,
        times=options.times,
        faults=options.faults,
        baseline_s=options.baseline_s,
        config=drill_config(name, options.seed),
    )
    with sigterm_is_ctrl_c():
        return run(plan, as_json=options.json)
