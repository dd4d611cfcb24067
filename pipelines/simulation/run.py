"""A simulation from its options to its figures.

population, application ──► talk (all users at once) ──► answers ──► results
"""

import asyncio
import sys
from dataclasses import dataclass
from typing import Any

import aiohttp

from pipelines.simulation.application import Application
from pipelines.simulation.population import Habits, populate
from pipelines.simulation.results import Answered, summarise
from pipelines.simulation.talk import Talk


@dataclass(frozen=True)
class Simulation:
    """What is simulated."""

    gateway: str
    application: Application
    users: int
    answers: int
    habits: Habits
    seed: int
    window: int
    max_tokens: int
    change_at: int | None = None
    """The answer from which on something else is liked; null if that never happens."""


def simulate(given: Simulation) -> dict[str, Any]:
    """Talks until all answers are there; returns the figures.

    Raises:
        BrokerError: the gateway refuses or stays away.
    """
    answers: list[Answered] = []

    def hear(answer: Answered) -> None:
        answers.append(answer)
        if len(answers) % given.window == 0:
            liked = sum(each.liked for each in answers[-given.window :]) / given.window
            line = f"{answer.at_s:6.0f} s  {len(answers):6d} answers  {liked:.2f} liked  version {answer.version}\n"
            sys.stderr.write(line)

    talk = Talk(given.gateway.rstrip("/"), given.application, given.answers, given.max_tokens, hear)
    asyncio.run(_talk(talk, given))
    ordered = sorted(answers, key=lambda answer: answer.number)
    change_at = given.answers if given.change_at is None else given.change_at
    figures = summarise(ordered, change_at, given.window)
    told = {"judgements": talk.judgements, "corrections": talk.corrections}
    return {"seed": given.seed, "shuffled": given.habits.shuffled, **told, **figures}


async def _talk(talk: Talk, given: Simulation) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        users = populate(given.users, given.habits, given.seed)
        await asyncio.gather(*(talk.converse(session, user) for user in users))
