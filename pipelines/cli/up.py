"""``asyncflow up``."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast, get_args

import structlog
import tyro

from pipelines.cli.dry_run import dry_run
from pipelines.cli.interrupts import sigterm_is_ctrl_c
from pipelines.cli.options import StartOptions, base_config, parse, peek
from pipelines.cli.taken import IfExists, Start, choose_start
from schemas.checks import Check
from schemas.config import RunConfig, validate
from schemas.errors import ConfigError
from schemas.receipts import KEY_NAME

_RESTARTS = 5
_DESCRIPTION = """Starts everything that a run needs on this machine and keeps it running.

In this order: a Kafka broker, the topics, a vLLM worker, the learner and Prism, the rollout pipeline, and with
--gateway the feedback pipeline and a web page where people chat with the model and judge its answers. With --evaluate
held-out prompts are asked of the weights as they come. A process that dies is started again, five times at most. Every
step is told in a line. It ends with code 0 when the learner has done all its steps and the last weights are evaluated.
Ctrl-C and SIGTERM end all of it in good order, with code 130 and 143. Ports are chosen free unless given. Everything
lies in runs/NAME/. Examples:

  asyncflow up --name sums --prompts sums.jsonl --steps 48
  asyncflow up --name sums --resume --steps 96
  asyncflow up --preset cpu-small --name mine --prompts mine.jsonl --if-exists new
  asyncflow up --name sums --prompts sums.jsonl --evaluate held-out.jsonl --evaluation.every 5
  asyncflow up --name chat --gateway --learner.objective.advantage running_baseline
"""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class UpOptions(StartOptions):
    """Arguments of the verb."""

    model: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Hugging Face directory, as --model.path; by default SmolLM2-135M-Instruct."""
    steps: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Optimizer steps, as --learner.steps."""
    prompts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON lines to submit at the start, in the form of the prompts topic."""
    evaluate: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also ask these held-out prompts of the weights, as asyncflow evaluate does; JSON lines, none of them trained."""
    feedback: bool = False
    """Also start the feedback pipeline."""
    gateway: bool = False
    """Also start a gateway, and with it the feedback pipeline: people chat with the model and judge its answers."""
    resume: bool = False
    """Go on with the run of that --name, under the configuration that it was started with."""
    if_exists: IfExists | None = None
    """If the run of that --name exists: resume it, start a new one under the next free name, or stop; by default a
    terminal is asked, and without one it stops. A run that is resumed so is not given --prompts a second time."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    with sigterm_is_ctrl_c():
        return _main(arguments)


def _main(arguments: Sequence[str]) -> int:
    start = _start(arguments)
    options = parse(UpOptions, "up", arguments, _DESCRIPTION, UpOptions(run=_base(arguments, start)))
    config = _complete(options, start)
    _find_own_code(config)
    said = list(_read_files(options))
    return _rehearse(config, options, start, said) if options.dry_run else _run(config, options, start)


def _find_own_code(config: RunConfig) -> None:
    """Imports the user's rewards and environments: what is wrong with them shows before anything starts."""
    from transforms.environments import registry as environments
    from transforms.rewards import registry as rewards

    rewards.load(config.rewards.modules)
    environments.load(config.rollout.environments)


def _read_files(options: UpOptions) -> Iterator[Check]:
    """Finds what is wrong with files before anything starts."""
    if options.prompts is not None:
        yield Check("submit", f"{_look_at(options.prompts)} prompts of {options.prompts}", "ok", "")
    if options.evaluate is not None:
        from pipelines.evaluation.prompts import read_held_out

        held_out = len(read_held_out(options.evaluate).prompts)
        yield Check("held-out prompts", f"{held_out} of {options.evaluate}", "ok", "")


def _look_at(file: Path) -> int:
    """How many prompts there are.

    Raises:
        ConfigError: the file cannot be read, or none of its prompts can be used.
    """
    from pipelines.submit import LOOKED_AT, find_unusable, read_lines

    lines = list(read_lines(file))
    unusable = find_unusable(lines)
    if lines and len(unusable) == min(len(lines), LOOKED_AT):
        raise ConfigError(f"--prompts {file}: none of the prompts can be used; {unusable[0]}")
    if unusable:
        _log.warning("prompts that will be dead letters", number=len(unusable), first=unusable[0])
    return len(lines)


def _rehearse(config: RunConfig, options: UpOptions, start: Start, said: list[Check]) -> int:
    from pipelines.local.paths import DEFAULT_RUNS

    return dry_run(
        "up",
        config,
        *said,
        directory=DEFAULT_RUNS / config.name,
        resume=start.resumes,
        gateway=options.gateway,
        feedback=options.feedback,
        evaluates=options.evaluate is not None,
    )


def _start(arguments: Sequence[str]) -> Start:
    """Under which name to start; what is wrong with the arguments is told by whoever parses them."""
    given, said = peek(arguments, "--name"), peek(arguments, "--if-exists") or peek(arguments, "--if_exists")
    if "--resume" in arguments:
        if said not in (None, "resume"):
            raise ConfigError(f"--resume and --if-exists {said}: give one of them")
        return Start(given or RunConfig().name, True)
    name = given or base_config(arguments).name
    if (said is not None and said not in get_args(IfExists)) or {"-h", "--help"} & set(arguments):
        return Start(name, False)
    if said is None and {"--dry-run", "--dry_run"} & set(arguments):
        return Start(name, False)  # the plan says that the name is taken, and nobody is asked
    return choose_start(name, cast("IfExists | None", said))


def _run(config: RunConfig, options: UpOptions, start: Start) -> int:
    from pipelines.local.progress import Progress
    from pipelines.local.stack import Stack

    with Stack(config, resume=start.resumes, restarts=_RESTARTS, held_out=options.evaluate) as stack:
        stack.start_serving()
        _submit(stack.config, options, start)
        stack.start_rollout()
        if options.evaluate is not None:
            stack.start_evaluator()
        if options.feedback or options.gateway:
            stack.start_feedback()
        sys.stdout.write(f"kafka {stack.config.kafka.bootstrap}\n")
        if options.gateway:
            stack.start_gateway()
            sys.stdout.write(f"gateway http://{stack.config.gateway.host}:{stack.config.gateway.port}\n")
        sys.stdout.flush()
        with Progress(stack.config, _say, since_start=not start.resumes):
            stack.wait()
        _say(f"done: {stack.directory}")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _submit(config: RunConfig, options: UpOptions, start: Start) -> None:
    """Writes the prompts, if there are some; a run that goes on because it exists may have them already."""
    from pipelines.submit import has_prompts, read_lines, submit

    if options.prompts is None:
        return
    if start.resumes and not options.resume and has_prompts(config):
        _log.info("the run has its prompts already", run=config.name)
        return
    sys.stdout.write(f"{submit(config, read_lines(options.prompts))} prompts\n")


def _base(arguments: Sequence[str], start: Start) -> RunConfig:
    """What flags are laid over: what was given, or for a run that goes on what it was started with."""
    given = peek(arguments, "--config") or peek(arguments, "--preset")
    if "--resume" in arguments and given:
        raise ConfigError(
            "--resume takes the configuration of the run itself: leave --config and --preset out, flags may override it"
        )
    if given or not start.resumes:
        return base_config(arguments)
    from pipelines.local.stack import saved_config

    return saved_config(start.name)


def _complete(options: UpOptions, start: Start) -> RunConfig:
    """The configuration with the short flags put in their places."""
    tree = options.run.model_dump(mode="json") | {"name": start.name}
    if options.steps is not None:
        tree["learner"]["steps"] = options.steps
    if options.model is not None:
        tree["model"]["path"] = str(options.model)
    if options.gateway and not tree["feedback"]["key_file"]:
        tree["feedback"]["key_file"] = KEY_NAME
    if not tree["model"]["path"]:
        from pipelines.local.demo_model import demo_model, known_demo_model

        tree["model"]["path"] = str((known_demo_model() if options.dry_run else demo_model()) or "")
    return validate(tree, "asyncflow up")
