"""``asyncflow simulate-users``."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import tyro

from pipelines.cli.options import parse
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.simulation.application import Application

_DESCRIPTION = """A seeded population that talks to a gateway as people do: it asks, likes or dislikes by a rule, errs
now and then, takes its time, and says what should have been answered, where it knows. Users of a chat begin to like
something else in the middle. Prints what came of it as JSON. Examples:

  asyncflow simulate-users --gateway http://127.0.0.1:8080 --first short --then wordy --answers 4000
  asyncflow simulate-users --application support --data DIR
"""
_OWN: Final = {"chat": ("first", "then", "change_at", "questions"), "support": ("data", "corrections")}
"""Options of one application."""
_CORRECTIONS: Final = 0.5


@dataclass(frozen=True)
class SimulateUsersOptions:
    """Arguments of the verb."""

    gateway: str = "http://127.0.0.1:8080"
    """Address of the gateway."""
    application: Literal["chat", "support"] = "chat"
    """Who talks: people with a preference of style, or support agents with customers' messages."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Support: directory that holds bitext/train.csv."""
    users: int = 32
    """How many talk at once."""
    answers: int = 4000
    """How many answers all of them ask for."""
    first: str | None = None
    """Chat: what is liked at first (by default short): short, wordy, sentence, exclaims or lowercase."""
    then: str | None = None
    """Chat: what is liked from --change-at on; by default wordy."""
    change_at: int | None = None
    """Chat: the answer from which on it is; by default in the middle."""
    noise: float = 0.05
    """Share of judgements that are the opposite of what is meant."""
    delay_s: float = 1.0
    """Mean seconds from an answer to its judgement."""
    dropout: float = 0.1
    """Share of answers that are not judged."""
    corrections: float | None = None
    """Support: share of thumbs down that are followed by the right answer; by default 0.5."""
    shuffled: bool = False
    """Judge by chance: the control, under which nothing may be learned."""
    window: int = 128
    """Answers over which the share of liked ones is taken."""
    max_tokens: int = 24
    """Longest answer."""
    questions: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Chat: text file with one question a line; by default a few dozen about countries."""
    seed: int = 0
    """Of everything random about the users."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(SimulateUsersOptions, "simulate-users", arguments, _DESCRIPTION)
    from pipelines.simulation.population import Habits
    from pipelines.simulation.run import Simulation, simulate

    _check(options)
    talks = options.application == "chat"
    corrections = 0.0 if talks else _CORRECTIONS if options.corrections is None else options.corrections
    change_at = options.answers // 2 if options.change_at is None else options.change_at
    figures = simulate(
        Simulation(
            gateway=options.gateway,
            application=_open(options, change_at),
            users=options.users,
            answers=options.answers,
            habits=Habits(options.noise, options.delay_s, options.dropout, options.shuffled, corrections),
            seed=options.seed,
            window=options.window,
            max_tokens=options.max_tokens,
            change_at=change_at if talks else None,
        )
    )
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0


def _check(options: SimulateUsersOptions) -> None:
    """What the other application would not hear of is refused."""
    for application, names in _OWN.items():
        told = [name for name in names if getattr(options, name) is not None]
        if told and options.application != application:
            flag = told[0].replace("_", "-")
            raise ConfigError(f"--{flag} is for --application {application}, given {options.application}")


def _open(options: SimulateUsersOptions, change_at: int) -> "Application":
    if options.application == "chat":
        from pipelines.simulation.chat import open_chat

        return open_chat(options.first or "short", options.then or "wordy", change_at, options.questions)
    from pipelines.simulation.support import open_support

    if options.data is None:
        raise ConfigError(
            "--application support needs customers' messages; give --data DIR, which holds bitext/train.csv"
        )
    return open_support(options.data)
