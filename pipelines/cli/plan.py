"""``asyncflow plan``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipelines.cli.options import parse
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.plan.calibration import Calibration
    from pipelines.plan.observe import Rates
    from pipelines.plan.prediction import Prediction

_DESCRIPTION = """Predicts throughput, staleness, idle shares and costs of a run with other numbers of GPUs.

The whole system is simulated: admission, engines, pipeline, log, learner, weights. How fast each part is comes from the
log of a run, or from a file made of one or written by hand; each value is listed with where it is from. What is printed
is predicted, not measured. Examples:

  asyncflow plan --run demo --save demo-plan.toml
  asyncflow plan --calibration demo-plan.toml --workers 1 2 4 8 --ranks 2
  asyncflow plan --calibration docs/plans/7b.toml --gpus 32 64 128 256 512 --gpu-hour-price 2.5
"""


@dataclass(frozen=True)
class PlanOptions:
    """Arguments of the verb."""

    run: tuple[str, ...] = ()
    """Directory or name of a run whose log is read; of further ones, with other loads, the engines' speeds."""
    calibration: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file to reckon with, instead of --run."""
    save: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to write what was found of the run, for --calibration."""
    bootstrap: str | None = None
    """Brokers as host:port, for a run without a directory here; by default those of its configuration."""
    gpus: tuple[int, ...] = ()
    """Numbers of GPUs; each is divided between engines and ranks of the learner as is best."""
    workers: tuple[int, ...] = ()
    """Numbers of engines, instead of --gpus."""
    ranks: int | None = None
    """Ranks of the learner, with --workers; by default as few as hold the model, learner.min_ranks."""
    partitions: int | None = None
    """Of prompts and trajectories, and shares of the rollout pipeline; by default as many as are at most half busy."""
    max_staleness: int | None = None
    """Versions; by default as calibrated."""
    groups_per_step: int | None = None
    """Groups; by default as calibrated."""
    max_in_flight: int | None = None
    """Groups in flight of all shares together, 0 for as many as are admitted; by default as calibrated."""
    scale_batch: bool = False
    """Let the groups of a step grow with the GPUs or workers, from the first number on."""
    gpu_hour_price: float | None = None
    """Of one GPU for an hour, in any currency; by default as calibrated."""
    steps: int = 24
    """Optimizer steps to simulate and count."""
    seed: int = 0
    """Of lengths and choices."""
    format: Literal["text", "markdown", "json"] = "text"
    """Markdown is the table alone; JSON is everything."""
    json: bool = False
    """The same as --format json."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(PlanOptions, "plan", arguments, _DESCRIPTION)
    _check(options)
    from pipelines.plan import report
    from pipelines.plan.calibration import save_calibration

    calibration, measured = _calibrated(options)
    calibration = _changed(calibration, options)
    if options.save:
        save_calibration(calibration, options.save)
    predictions = _predict(calibration, options)
    if options.json or options.format == "json":
        sys.stdout.write(report.to_json(calibration, predictions, measured))
    elif options.format == "markdown":
        sys.stdout.write(report.to_markdown(predictions))
    else:
        sys.stdout.write(report.to_text(calibration, predictions, measured))
    return 0


def _check(options: PlanOptions) -> None:
    if bool(options.run) == (options.calibration is not None):
        raise ConfigError("say what to reckon with by exactly one of --run RUN and --calibration FILE")
    if options.gpus and options.workers:
        raise ConfigError("give --gpus, to have them divided, or --workers and --ranks, not both")
    if options.format == "markdown" and not options.gpus + options.workers:
        raise ConfigError("a table needs lines: give --gpus or --workers")
    if options.ranks is not None and not options.workers:
        raise ConfigError(f"--ranks {options.ranks}: goes with --workers; --gpus says itself how many learn")
    numbers: dict[str, tuple[int | None, ...]] = {
        "--gpus": options.gpus,
        "--workers": options.workers,
        "--ranks": (options.ranks,),
        "--partitions": (options.partitions,),
        "--steps": (options.steps,),
    }
    for flag, given in numbers.items():
        for number in given:
            if number is not None and number < 1:
                raise ConfigError(f"{flag} {number}: expected 1 or more")


def _calibrated(options: PlanOptions) -> "tuple[Calibration, Rates | None]":
    """What to reckon with, and what the run did itself."""
    from pipelines.plan.calibration import load_calibration
    from pipelines.plan.measure import Run, calibrate
    from pipelines.plan.observe import observe
    from pipelines.runs import find_config, served

    if options.calibration:
        return load_calibration(options.calibration), None
    runs = []
    for name in options.run:
        directory = find_config(name, options.bootstrap)[1]
        with served(name, options.bootstrap) as config:
            runs.append(Run(config, observe(config), directory))
    return calibrate(runs), runs[0].observed.rates()


def _changed(calibration: "Calibration", options: PlanOptions) -> "Calibration":
    """The calibration with what the arguments say in its place."""
    from pipelines.plan.calibration import changed

    given: dict[str, Any] = {
        "workload.max_staleness": options.max_staleness,
        "workload.groups_per_step": options.groups_per_step,
        "gpu_hour_price": options.gpu_hour_price,
    }
    values = {key: value for key, value in given.items() if value is not None}
    if options.max_in_flight is not None:
        values["log.max_in_flight"] = options.max_in_flight or None
    return changed(calibration, values)


def _predict(calibration: "Calibration", options: PlanOptions) -> "list[Prediction]":
    from pipelines.plan.calibration import changed
    from pipelines.plan.prediction import predict
    from pipelines.plan.simulation import Shape
    from pipelines.plan.split import enough_partitions, propose

    found, numbers, ranks = [], options.gpus or options.workers, _ranks(calibration, options.ranks)
    for number in numbers:
        growth = number / numbers[0] if options.scale_batch else 1
        groups = round(calibration.workload.groups_per_step * growth)
        grown = changed(calibration, {"workload.groups_per_step": groups})
        if options.gpus:
            found.append(propose(grown, number, partitions=options.partitions, steps=options.steps, seed=options.seed))
        else:
            partitions = options.partitions or enough_partitions(grown, number)
            shape = Shape(number, ranks, partitions)
            found.append(predict(grown, shape, steps=options.steps, seed=options.seed))
    return found


def _ranks(calibration: "Calibration", given: int | None) -> int:
    least = calibration.learner.min_ranks
    if given is not None and given < least:
        raise ConfigError(f"--ranks {given}: the model needs at least {least} (learner.min_ranks of the calibration)")
    return given or least
