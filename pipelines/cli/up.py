"""``asyncflow up``."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.cli.dry_run import dry_run
from pipelines.cli.interrupts import sigterm_is_ctrl_c
from pipelines.cli.options import StartOptions, base_config, parse, peek
from schemas.checks import Check
from schemas.config import RunConfig, validate
from schemas.errors import ConfigError
from schemas.receipts import KEY_NAME

_RESTARTS = 5
_DESCRIPTION = """Starts everything that a run needs on this machine and keeps it running.

In this order: a Kafka broker, the topics, a vLLM worker, the learner and Prism, the rollout pipeline, and with
--gateway the feedback pipeline and a web page where people chat with the model and judge its answers. With --evaluate
held-out prompts are asked of the weights as they come. A process that dies is started again, five times at most. It
ends with code 0 when the learner has done all its steps and the last weights are evaluated. Ctrl-C and SIGTERM end all
of it in good order, with code 130 and 143.
Ports are chosen free unless given. Everything lies in runs/NAME/. Examples:

  asyncflow up --name sums --prompts sums.jsonl --steps 48
  asyncflow up --name sums --resume --steps 96
  asyncflow up --name sums --prompts sums.jsonl --evaluate held-out.jsonl --evaluation.every 5
  asyncflow up --name chat --gateway --learner.objective.advantage running_baseline
"""


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


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    with sigterm_is_ctrl_c():
        return _main(arguments)


def _main(arguments: Sequence[str]) -> int:
    options = parse(UpOptions, "up", arguments, _DESCRIPTION, UpOptions(run=_base(arguments)))
    config = _complete(options)
    said = list(_read_files(options))
    return _rehearse(config, options, said) if options.dry_run else _run(config, options)


def _read_files(options: UpOptions) -> Iterator[Check]:
    """Finds what is wrong with files before anything starts."""
    if options.prompts is not None:
        from pipelines.submit import read_lines

        lines = sum(1 for _ in read_lines(options.prompts))
        yield Check("submit", f"{lines} prompts of {options.prompts}", "ok", "")
    if options.evaluate is not None:
        from pipelines.evaluation.prompts import read_held_out

        held_out = len(read_held_out(options.evaluate).prompts)
        yield Check("held-out prompts", f"{held_out} of {options.evaluate}", "ok", "")


def _rehearse(config: RunConfig, options: UpOptions, said: list[Check]) -> int:
    from pipelines.local.paths import DEFAULT_RUNS

    return dry_run(
        "up",
        config,
        *said,
        directory=DEFAULT_RUNS / config.name,
        resume=options.resume,
        gateway=options.gateway,
        feedback=options.feedback,
        evaluates=options.evaluate is not None,
    )


def _run(config: RunConfig, options: UpOptions) -> int:
    from pipelines.local.stack import Stack
    from pipelines.submit import read_lines, submit

    with Stack(config, resume=options.resume, restarts=_RESTARTS, held_out=options.evaluate) as stack:
        stack.start_serving()
        if options.prompts is not None:
            sys.stdout.write(f"{submit(stack.config, read_lines(options.prompts))} prompts\n")
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
        stack.wait()
    return 0


def _base(arguments: Sequence[str]) -> RunConfig:
    if "--resume" not in arguments:
        return base_config(arguments)
    if peek(arguments, "--config"):
        raise ConfigError(
            "--resume takes the configuration of the run itself: leave --config out, flags may override it"
        )
    from pipelines.local.stack import saved_config

    return saved_config(peek(arguments, "--name") or RunConfig().name)


def _complete(options: UpOptions) -> RunConfig:
    """The configuration with the short flags put in their places."""
    tree = options.run.model_dump(mode="json")
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
