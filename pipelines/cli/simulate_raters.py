"""``asyncflow simulate-raters``."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.cli.options import parse
from schemas.errors import ConfigError

_DESCRIPTION = """Simulated users who know the right answers of a task and judge what a run answers, over Kafka alone.

They follow the answers that wait for feedback. One that scores --threshold or more gets a thumb up; for others the
right text is given as a correction. Some slip and have another prompt in mind, some say nothing, and all take their
time. Prints as JSON the mean score of the answers over time. Example:

  asyncflow submit translation --data data --feedback-share 0.5 --limit 4000 --run translation
  asyncflow simulate-raters translation --data data --run translation --answers 4000
"""


@dataclass(frozen=True)
class SimulateRatersOptions:
    """Arguments of the verb."""

    task: tyro.conf.Positional[str]
    """Whose prompts are answered: translation or support."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Directory that holds the data sets. Required."""
    args: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """What the task is told, as it was when its prompts were submitted."""
    run: str | None = None
    """Directory or name of the run."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file with the run's configuration, instead of --run."""
    bootstrap: str | None = None
    """Brokers as host:port; by default those of the run's configuration."""
    raters: int = 32
    """How many users there are; each answer is judged by one of them."""
    answers: int = 4000
    """After how many answers the simulation ends."""
    threshold: float = 0.6
    """Score from which on an answer gets a thumb up instead of a correction."""
    noise: float = 0.05
    """Share of judgements that were meant for another prompt."""
    delay_s: float = 1.0
    """Mean seconds from an answer to its judgement."""
    dropout: float = 0.1
    """Share of answers that are not judged."""
    shuffled: bool = False
    """All judgements are meant for another prompt: the control."""
    window: int = 128
    """Answers over which the mean score is taken."""
    patience_s: float = 600.0
    """The simulation ends too when no answer has come for so long."""
    seed: int = 0
    """Of everything random about the users."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(SimulateRatersOptions, "simulate-raters", arguments, _DESCRIPTION)
    if options.data is None:
        raise ConfigError("--data DIR is missing: give the directory that holds the data of the task")
    from pipelines.runs import find_run
    from pipelines.simulation.population import Habits, populate
    from pipelines.simulation.rating import Rating
    from pipelines.simulation.translators import Translators
    from pipelines.tasks.registry import find

    prompts = list(find(options.task, options.args).prompts(options.data, "train"))
    habits = Habits(options.noise, options.delay_s, options.dropout, options.shuffled)
    users = populate(options.raters, habits, options.seed)
    raters = Translators(prompts, users, options.threshold, options.seed)
    config = find_run(options.run, options.config, options.bootstrap)
    name = f"rating-{options.seed}"
    rating = Rating(config, raters, options.answers, options.patience_s, options.window, name)
    told = {"seed": options.seed, "shuffled": options.shuffled, **rating.run()}
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    return 0
