"""``asyncflow eval``."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import structlog
import tyro

from pipelines.cli.interrupts import sigterm_is_ctrl_c
from pipelines.cli.options import ProcessOptions, base_config, parse, peek
from schemas.config import RunConfig, validate
from schemas.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from pipelines.evaluation.questions import Questions
    from pipelines.evaluation.report import Report
    from pipelines.evaluation.scores import Found
    from pipelines.evaluation.served import Served

_DESCRIPTION = """Asks the held-out prompts of tasks once and prints a table: each benchmark's metrics with intervals.

Asked is a model in a directory (--model), which a worker of its own serves for the time, or a run (--run): its workers,
with the weights that they have just now, or with --version a version of it, served by a worker of its own. The answers
are the likeliest ones (greedy); with --constrained they are held to the labels of the prompt. What follows a run while
it trains, and writes to its log, is asyncflow evaluate. Examples:

  asyncflow eval --tasks glue --data data --model models/SmolLM2-135M-Instruct --limit 200
  asyncflow eval --tasks glue superglue --data data --model models/demo --constrained --out demo.json
  asyncflow eval --tasks gsm8k --data data --run demo --version best --samples 4 --evaluation.max-tokens 300
"""

_FILE_WIDTH = 120
"""Columns of a table that no terminal shows."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class EvalOptions(ProcessOptions):
    """Arguments of the verb."""

    tasks: tuple[str, ...] = ()
    """Tasks or families of tasks, such as glue, or rte gsm8k. Required."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Directory that holds the data sets. Required."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Hugging Face directory to ask."""
    of: Annotated[str | None, tyro.conf.arg(name="run", metavar="RUN")] = None
    """Directory or name of the run to ask, instead of --model; without both, the run of --config."""
    version: Annotated[str | None, tyro.conf.arg(metavar="N|newest|best")] = None
    """Of a run: a version in its weight store, for a worker of its own; by default its workers are asked."""
    args: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Of one task: what it is told, such as to=fr for translation, or tasks=sst2,rte for glue."""
    split: Literal["train", "held_out"] = "held_out"
    """Which rows."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Prompts of each task, which --seed draws; by default all."""
    constrained: bool = False
    """Hold answers to the labels of their prompts, where there are labels; others stay free."""
    samples: Annotated[int | None, tyro.conf.arg(metavar="K")] = None
    """Also draw so many answers a prompt, for mean reward, pass@1, pass@K, and what --evaluation.pass-at says below
    it; as --evaluation.samples."""
    json: bool = False
    """Print JSON instead of the table."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the JSON to a file."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(EvalOptions, "eval", arguments, _DESCRIPTION, EvalOptions(run=_base(arguments)))
    config = _with_samples(options)
    _require_one_to_ask(options)
    questions = _questions(options, config)
    with sigterm_is_ctrl_c(), _serving(options, config) as served:
        report = _evaluate(options, served, questions)
    _tell(report, options)
    return 0


def _base(arguments: Sequence[str]) -> RunConfig:
    """The configuration of the run that is asked, or of the file."""
    run = peek(arguments, "--run")
    if run is None:
        return base_config(arguments)
    if peek(arguments, "--config") or peek(arguments, "--preset"):
        raise ConfigError("name the run by exactly one of --run and --config, without --preset")
    from pipelines.runs import find_config

    return find_config(run, or_else="its configuration with --config")[0]


def _with_samples(options: EvalOptions) -> RunConfig:
    if options.samples is None:
        return options.run
    tree, most = options.run.model_dump(mode="json"), max(1, options.samples)
    wanted = {1, most, *(k for k in options.run.evaluation.pass_at if k < most)}
    tree["evaluation"] |= {"samples": options.samples, "pass_at": sorted(wanted)}
    return validate(tree, "asyncflow eval")


def _require_one_to_ask(options: EvalOptions) -> None:
    if options.model is not None and options.of is not None:
        raise ConfigError("--model and --run: give the one that is to be asked")
    if options.model is None and options.of is None and options.config is None:
        raise ConfigError("nothing to ask: give --model DIR, or a run with --run RUN")
    if options.model is not None and options.version is not None:
        raise ConfigError("--version is of a run, and --model names a directory; leave one of them out")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise ConfigError(f"--out {options.out}: no directory {options.out.parent}; create it, or give another place")
    if options.out is not None and options.out.is_dir():
        raise ConfigError(f"--out {options.out}: a directory; give a file, such as {options.out / 'eval.json'}")


def _questions(options: EvalOptions, config: RunConfig) -> "Questions":
    """All of which can be scored: a worker takes minutes to start."""
    from pipelines.evaluation.prompts import check_scorable
    from pipelines.evaluation.questions import Draw, ask_tasks, require_choices

    if options.data is None:
        raise ConfigError("--data DIR is missing: give the directory that holds the data sets")
    draws = Draw(options.split, options.limit, config.seed)
    questions = ask_tasks(options.tasks, options.data, draws, options.args)
    if options.constrained:
        require_choices(questions)
    check_scorable(config, questions.prompts)
    return questions


@contextmanager
def _serving(options: EvalOptions, config: RunConfig) -> "Iterator[Served]":
    """Who answers, for as long as the context lasts."""
    from pipelines.evaluation.served import model_served, run_served, version_served
    from pipelines.runs import served as log_served

    if options.model is not None:
        with model_served(config, options.model) as served:
            yield served
    elif options.version is None:
        yield run_served(config)
    elif options.of is None:
        with version_served(config, options.version) as served:
            yield served
    else:
        with log_served(options.of) as live:
            readable = config.model_copy(update={"kafka": live.kafka})
            with version_served(readable, options.version) as served:
                yield served


def _evaluate(options: EvalOptions, served: "Served", questions: "Questions") -> "Report":
    from pipelines.evaluation.ask import Asker
    from pipelines.evaluation.prompts import check_usable
    from pipelines.evaluation.scores import Found
    from pipelines.evaluation.served import while_served
    from transforms.generation.tokenizer import Tokenizer

    config = served.config
    tokenizer = Tokenizer.load(config.model.path)
    check_usable(questions.prompts, tokenizer)
    asker = Asker(config, questions.prompts, tokenizer)

    def ask() -> Found:
        greedy = asker.constrained if options.constrained else asker.greedy
        drawn = asker.drawn(served.version) if config.evaluation.samples else ()
        return Found(greedy(served.version), held=options.constrained, drawn=drawn)

    _log.info("asking", prompts=len(questions.prompts), tasks=list(questions.tasks), workers=config.rollout.workers)
    return _report(options, served, questions, while_served(served, ask))


def _report(options: EvalOptions, served: "Served", questions: "Questions", found: "Found") -> "Report":
    from pipelines.evaluation.prompts import HeldOut
    from pipelines.evaluation.report import Report
    from pipelines.evaluation.scores import score

    config = served.config
    versions = frozenset[int]().union(*(each.versions for each in (*found.greedy, *found.drawn)))
    if not versions:
        raise EngineError(f"none of {len(found.greedy)} prompts was answered; the log says why")
    tasks, families = score(questions, found, config.evaluation, config.seed)
    is_run = options.model is None
    return Report(
        model=str(options.model or options.run.model.path),
        run=config.name if is_run else None,
        version=(served.exported or min(versions)) if is_run else None,
        version_max=(served.exported or max(versions)) if is_run else None,
        dtype=config.model.dtype,
        split=options.split,
        limit=options.limit,
        seed=config.seed,
        constrained=options.constrained,
        max_tokens=config.evaluation.max_tokens or config.rollout.sampling.max_tokens,
        prompts_sha256=HeldOut(questions.prompts).sha256,
        tasks=tuple(tasks),
        families=tuple(families),
    )


def _tell(report: "Report", options: EvalOptions) -> None:
    text = f"{report.model_dump_json(indent=2)}\n"
    try:
        if options.out is not None:
            options.out.write_text(text)
    finally:  # a disk that is full by now costs the file, and not what was found
        _print(report, text if options.json else None)


def _print(report: "Report", text: str | None) -> None:
    if text is not None:
        sys.stdout.write(text)
        return
    from rich.console import Console

    from pipelines.evaluation.report import render

    console = Console()
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(render(report))
