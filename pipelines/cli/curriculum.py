"""``asyncflow curriculum``."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import tyro

from pipelines.cli.dry_run import dry_run
from pipelines.cli.interrupts import sigterm_is_ctrl_c
from pipelines.cli.options import parse
from pipelines.curriculum.settings import Selection
from schemas.checks import Check
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.curriculum.source import Order
    from schemas.config import RunConfig

_DESCRIPTION = """Writes prompts of tasks to a run, the tasks by weight, and of each those that teach most now.

It reads from the run's log what came of the prompts, and draws those more often whose answers are now right and now
wrong. It writes as fast as the learner admits, until there are --prompts, or until SIGTERM or Ctrl-C, and goes on
where it was when it is started again. Prints one JSON object at the end. Examples:

  asyncflow curriculum --run demo --data data --tasks gsm8k=2 arith=1 countdown=1
  asyncflow curriculum --run demo --data data --tasks glue=1:tasks=sst2,rte translation=1:to=fr --prompts 4000
  asyncflow curriculum --config runs/demo/config.toml --files mine.jsonl=3 more.jsonl=1 --seed 1
"""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class CurriculumOptions:
    """Arguments of the verb."""

    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME[=WEIGHT][:KEY=VALUE]...")] = ()
    """Tasks with their weights, 1 if none is given, and what they are told. A family divides its weight among its
    tasks."""
    files: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE[=WEIGHT]")] = ()
    """JSON lines in the form of the prompts topic, each with a prompt_id of its own; a file is drawn as a task is."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Directory that holds the data sets of the tasks."""
    run: str | None = None
    """Directory or name of the run."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with the run's configuration, instead of --run."""
    bootstrap: str | None = None
    """Brokers as host:port; by default those of the run's configuration."""
    prompts: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """How many in all, those of earlier starts included; by default as many as the learner admits."""
    ahead: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Prompts that may wait to be admitted; by default twice learner.groups_per_step."""
    seed: int = 0
    """Of the draws."""
    selection: Annotated[Selection, tyro.conf.arg(name="")] = field(default_factory=Selection)
    dry_run: bool = False
    """Say what would be started where, what it needs and what is wrong (exit code 2), and start and write nothing."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(CurriculumOptions, "curriculum", arguments, _DESCRIPTION)
    _check(options)
    from pipelines.curriculum.source import Curriculum
    from pipelines.runs import find_run

    config = find_run(options.run, options.config, options.bootstrap)
    order = _order(options, config)
    if options.dry_run:
        return dry_run("curriculum", config, *_said(order))
    curriculum = Curriculum(config, order)
    try:
        with sigterm_is_ctrl_c():
            curriculum.run()
    except KeyboardInterrupt:
        _log.info("ended", run=config.name)
    finally:
        figures = curriculum.close()
    sys.stdout.write(json.dumps({**figures, "seed": options.seed}, indent=1) + "\n")
    return 0


def _check(options: CurriculumOptions) -> None:
    for flag, given in (("--prompts", options.prompts), ("--ahead", options.ahead)):
        if given is not None and given < 1:
            raise ConfigError(f"{flag} {given}: expected 1 or more")


def _said(order: "Order") -> list[Check]:
    """The pools, and how much is drawn of each."""
    whole = sum(pool.weight for pool in order.pools)
    return [
        Check(f"pool {pool.name}", f"{len(pool.ids)} prompts, {pool.weight / whole:.0%} of the draws", "ok", "")
        for pool in order.pools
    ]


def _order(options: CurriculumOptions, config: "RunConfig") -> "Order":
    from pipelines.curriculum.pools import Named, load_pools
    from pipelines.curriculum.source import Order, default_ahead

    tasks, files = [Named.task(each) for each in options.tasks], [Named.file(each) for each in options.files]
    return Order(
        pools=tuple(load_pools(tasks, files, options.data)),
        selection=options.selection,
        seed=options.seed,
        ahead=options.ahead or default_ahead(config),
        prompts=options.prompts,
    )
