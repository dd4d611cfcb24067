"""``asyncflow simulate-users``."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.cli.options import parse

_DESCRIPTION = """A seeded population that talks to a gateway as people do: it asks, likes or dislikes by a rule, errs
now and then, takes its time, and in the middle begins to like something else. Prints what came of it as JSON. Example:

  asyncflow simulate-users --gateway http://127.0.0.1:8080 --first short --then wordy --answers 4000
"""


@dataclass(frozen=True)
class SimulateUsersOptions:
    """Arguments of the verb."""

    gateway: str = "http://127.0.0.1:8080"
    """Address of the gateway."""
    users: int = 32
    """How many talk at once."""
    answers: int = 4000
    """How many answers all of them ask for."""
    first: str = "short"
    """What is liked at first: short, wordy, sentence, exclaims or lowercase."""
    then: str = "wordy"
    """What is liked from --change-at on."""
    change_at: int | None = None
    """The answer from which on it is; by default in the middle."""
    noise: float = 0.05
    """Share of judgements that are the opposite of what is meant."""
    delay_s: float = 1.0
    """Mean seconds from an answer to its judgement."""
    dropout: float = 0.1
    """Share of answers that are not judged."""
    shuffled: bool = False
    """Judge by chance: the control, under which nothing may be learned."""
    window: int = 128
    """Answers over which the share of liked ones is taken."""
    max_tokens: int = 24
    """Longest answer."""
    questions: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Text file with one question a line; by default a few dozen about countries."""
    seed: int = 0
    """Of everything random about the users."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(SimulateUsersOptions, "simulate-users", arguments, _DESCRIPTION)
    from pipelines.simulation.population import Habits
    from pipelines.simulation.run import Simulation, simulate

    figures = simulate(
        Simulation(
            gateway=options.gateway,
            users=options.users,
            answers=options.answers,
            first=options.first,
            then=options.then,
            change_at=options.answers // 2 if options.change_at is None else options.change_at,
            habits=Habits(options.noise, options.delay_s, options.dropout, options.shuffled),
            seed=options.seed,
            window=options.window,
            max_tokens=options.max_tokens,
            questions=options.questions,
        )
    )
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0
