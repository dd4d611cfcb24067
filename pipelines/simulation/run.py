"""A simulation from its options to its figures.

population, preferences ──► talk (all users at once) ──► answers ──► results
"""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from pipelines.simulation.population import Change, Habits, populate
from pipelines.simulation.preferences import find
from pipelines.simulation.results import Answered, summarise
from pipelines.simulation.talk import Talk
from schemas.errors import ConfigError

QUESTIONS: Final = tuple(
    f"What is the {what} of {where}?" for what in ("capital", "language", "climate", "history")
    for where in ("France", "Japan", "Brazil", "Kenya", "Canada", "Egypt", "India", "Norway")
)  # fmt: skip
"""What is asked where no file of questions is given."""


@dataclass(frozen=True)
class Simulation:
    """What is simulated."""

    gateway: str
    users: int
    answers: int
    first: str
    then: str
    change_at: int
    habits: Habits
    seed: int
    window: int
    max_tokens: int
    questions: Path | None = None
    task: str = "chat"


def simulate(given: Simulation) -> dict[str, Any]:
    """Talks until all answers are there; returns the figures.

    Raises:
        ConfigError: a preference that does not exist, or a file of questions that cannot be read.
        BrokerError: the gateway refuses or stays away.
    """
    change = Change(find(given.first), find(given.then), given.change_at)
    answers: list[Answered] = []

    def hear(answer: Answered) -> None:
        answers.append(answer)
        if len(answers) % given.window == 0:
            liked = sum(each.liked for each in answers[-given.window :]) / given.window
            line = f"{answer.at_s:6.0f} s  {len(answers):6d} answers  {liked:.2f} liked  version {answer.version}\n"
            sys.stderr.write(line)

    talk = Talk(given.gateway.rstrip("/"), change, given.answers, given.task, given.max_tokens, hear)
    asyncio.run(_talk(talk, given))
    ordered = sorted(answers, key=lambda answer: answer.number)
    figures = summarise(ordered, given.change_at, given.window)
    return {"seed": given.seed, "shuffled": given.habits.shuffled, "judgements": talk.judgements, **figures}


async def _talk(talk: Talk, given: Simulation) -> None:
    questions = _read(given.questions)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        users = populate(given.users, given.habits, given.seed)
        await asyncio.gather(*(talk.converse(session, user, questions) for user in users))


def _read(path: Path | None) -> list[str]:
    if path is None:
        return list(QUESTIONS)
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"questions {path}: {error}; give a text file with one question a line") from error
    if not lines:
        raise ConfigError(f"questions {path}: no question in it; give a text file with one a line")
    return lines
