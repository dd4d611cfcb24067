"""``asyncflow submit``."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipelines.cli.dry_run import dry_run
from pipelines.cli.options import parse
from pipelines.submit import read_lines, submit, write_lines
from schemas.checks import Check
from schemas.errors import ConfigError
from transforms.modules import is_file

_DESCRIPTION = """Writes prompts to a run and prints how many: those of a JSON-lines file, with --data those of a task.

The lines of a file are written as they are: one that is no valid prompt becomes a dead letter of the run. A task reads
its data set from the directory that --data names. Name the run by its directory or name, or by a configuration file;
with --out the prompts go to a file instead. Examples:

  asyncflow submit prompts.jsonl --run demo
  asyncflow submit prompts.jsonl --run prod --bootstrap kafka-1:9092
  asyncflow submit translation --data data --args to=fr --limit 4000 --feedback-share 0.5 --run translation
  asyncflow submit glue --data data --args tasks=sst2,rte --limit 4000 --run glue
  asyncflow submit translation --data data --args to=fr --split held_out --limit 200 --out held-out.jsonl
  asyncflow submit my_task.py --epochs 20 --out train.jsonl
"""


@dataclass(frozen=True)
class SubmitOptions:
    """Arguments of the verb."""

    what: tyro.conf.Positional[str]
    """JSON lines in the form of the prompts topic, or with --data a task such as translation, support or glue; or a
    file of Python that defines a task of your own, whose data lies beside it unless --data says where."""
    run: str | None = None
    """Directory or name of the run."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with the run's configuration, instead of --run."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON-lines file to write the prompts to, instead of a run."""
    bootstrap: str | None = None
    """Brokers as host:port; by default those of the run's configuration."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Of a task: directory that holds the data sets."""
    args: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Of a task: what it is told, such as to=fr for translation into French."""
    split: Literal["train", "held_out"] = "train"
    """Of a task: which of its rows; held_out ones are never trained."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Of a task: how many prompts; by default all."""
    epochs: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Of a task: how often each prompt is written, in a new order each time."""
    seed: int = 0
    """Of a task: of the order, and so of which ones a limit leaves."""
    feedback_share: Annotated[float | None, tyro.conf.arg(metavar="X")] = None
    """Of a task: people judge the answers, and its function remains so much of the reward, from 0 to 1; by default
    the function alone rewards them."""
    json: bool = False
    """Print a JSON object: the run or the file, and how many prompts."""
    dry_run: bool = False
    """Say how many prompts would be written where and what is wrong (exit code 2), and write nothing."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(SubmitOptions, "submit", arguments, _DESCRIPTION)
    if options.out is not None and (options.run is not None or options.config is not None):
        raise ConfigError("--out writes to a file: leave --run and --config out, or --out")
    if options.dry_run:
        return _rehearse(options, _lines(options))
    told = _write(options, _lines(options))
    sys.stdout.write(f"{json.dumps(told)}\n" if options.json else f"{told['prompts']} prompts\n")
    return 0


def _write(options: SubmitOptions, lines: Iterable[bytes]) -> dict[str, str | int]:
    """Where the prompts went, and how many."""
    from pipelines.runs import find_run

    if options.out is None:
        config = find_run(options.run, options.config, options.bootstrap)
        return {"run": config.name, "prompts": submit(config, lines)}
    return {"out": str(options.out), "prompts": write_lines(options.out, lines)}


def _rehearse(options: SubmitOptions, lines: Iterable[bytes]) -> int:
    from pipelines.dry_run.show import tell
    from pipelines.runs import find_run

    sizes = [len(line) for line in lines]
    said = Check("prompts", f"{len(sizes)} of {options.what}, {sum(sizes):,} bytes", "ok", "")
    if options.out is None:
        return dry_run("submit", find_run(options.run, options.config, options.bootstrap), said)
    return tell("submit", {"what would be written": (said, _place(options.out))})


def _place(out: Path) -> Check:
    """Whether a file can be made where ``--out`` says; one that exists is never replaced."""
    if out.exists():
        return Check("file", f"{out} exists", "problem", "give a file that does not exist yet")
    if not out.parent.is_dir():
        return Check("file", f"{out.parent} is no directory", "problem", "make it, or give another place")
    return Check("file", f"{out}, new", "ok", "")


def _lines(options: SubmitOptions) -> Iterable[bytes]:
    """The prompts, as records.

    Raises:
        ConfigError: there is no such file or task, or its data is missing or wrong.
    """
    data = Path(options.what).parent if options.data is None and is_file(options.what) else options.data
    if data is not None:
        return _lines_of_task(options, data)
    if not Path(options.what).exists():
        _refuse_task_without_data(options.what)
    if said := _said_of_task(options):
        raise ConfigError(f"{said[0]} is for tasks, whose directory --data names; {options.what} is a file")
    return read_lines(Path(options.what))


def _lines_of_task(options: SubmitOptions, data: Path) -> list[bytes]:
    from pipelines.tasks.draw import draw, judged_by_people, repeated
    from pipelines.tasks.registry import find

    task = find(options.what, options.args)
    prompts = draw(task, data, options.split, limit=options.limit, seed=options.seed)
    if options.feedback_share is not None:
        prompts = judged_by_people(prompts, options.feedback_share)
    return [prompt.encode() for prompt in repeated(prompts, options.epochs, options.seed)]


def _refuse_task_without_data(what: str) -> None:
    from pipelines.tasks.registry import TASKS

    if what in TASKS:
        raise ConfigError(f"{what} is a task: give the directory of its data with --data DIR ({TASKS[what].title})")


def _said_of_task(options: SubmitOptions) -> list[str]:
    """The flags of a task that were given."""
    default = SubmitOptions(what="")
    names = ("args", "split", "limit", "epochs", "seed", "feedback_share")
    return [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) != getattr(default, name)]
