"""One user's questions and judgements, over the gateway's routes, as any program would send them.

question ──► POST /v1/chat/completions ──► answer, rollout id, receipt ──► (the user thinks) ──► POST /feedback:
a thumb, and perhaps what should have been answered
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import aiohttp
import structlog

from pipelines.simulation.application import Application, Question
from pipelines.simulation.population import User
from pipelines.simulation.results import Answered
from schemas.errors import BrokerError

_LOG = structlog.get_logger(__name__)
_BUSY: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.BAD_GATEWAY)
_PAUSE_S: Final = 1.0
_MOST_PAUSES: Final = 120


@dataclass
class Talk:
    """What all users share while they talk.

    Args:
        url: of the gateway.
        application: what they ask, and what they like.
        answers: how many all of them ask for.
        max_tokens: longest answer.
        on_answer: told each answer.
    """

    url: str
    application: Application
    answers: int
    max_tokens: int
    on_answer: Callable[[Answered], None]
    asked: int = 0
    judgements: int = 0
    corrections: int = 0
    started_s: float = field(default_factory=time.monotonic)

    async def converse(self, session: aiohttp.ClientSession, user: User) -> None:
        """One user until all answers are asked for; judgements are given while the next question is asked."""
        thinking: set[asyncio.Task[None]] = set()
        while self.asked < self.answers:
            number, self.asked = self.asked, self.asked + 1
            question = user.choose(self.application.questions)
            reply = await self._ask(session, user, question.text)
            verdict = self.application.judge(number, question, reply.text)
            at_s = time.monotonic() - self.started_s
            version = max(reply.versions)
            self.on_answer(Answered(number, at_s, verdict.likes, self.judgements, version, verdict.parts))
            thumb = user.judge(verdict.likes)
            if thumb is not None:
                correction = None if thumb else self._correction(user, question)
                task = asyncio.create_task(self._judge(session, user, reply, thumb, correction))
                thinking.add(task)
                task.add_done_callback(thinking.discard)
        await asyncio.gather(*thinking)

    def _correction(self, user: User, question: Question) -> str | None:
        if not user.corrects():
            return None
        meant = user.choose(self.application.questions) if user.habits.shuffled else question
        return self.application.correct(meant)

    async def _ask(self, session: aiohttp.ClientSession, user: User, question: str) -> "Reply":
        body = {
            "messages": [{"role": "user", "content": question}],
            "user": user.name,
            "task": self.application.task,
            "max_tokens": self.max_tokens,
        }
        answer, headers = await self._post(session, "/v1/chat/completions", body)
        return Reply(
            text=answer["choices"][0]["message"]["content"] or "",
            rollout_id=headers["X-AsyncFlow-Rollout"],
            receipt=headers.get("X-AsyncFlow-Receipt"),
            versions=[int(version) for version in headers["X-AsyncFlow-Versions"].split(",")],
        )

    async def _judge(
        self, session: aiohttp.ClientSession, user: User, reply: "Reply", thumb: bool, correction: str | None
    ) -> None:
        await asyncio.sleep(user.delay_s())
        await self._give(session, user, reply, "thumb", 1.0 if thumb else -1.0)
        if correction is not None:
            await self._give(session, user, reply, "correction", correction)
            self.corrections += 1

    async def _give(
        self, session: aiohttp.ClientSession, user: User, reply: "Reply", kind: str, value: float | str
    ) -> None:
        body = {"rollout_id": reply.rollout_id, "kind": kind, "value": value, "user": user.name}
        await self._post(session, "/feedback", body | ({"receipt": reply.receipt} if reply.receipt else {}))
        self.judgements += 1

    async def _post(
        self, session: aiohttp.ClientSession, route: str, body: dict[str, Any]
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        """An answer of the gateway; while it is busy, later.

        Raises:
            BrokerError: it refuses, or stays away.
        """
        fault = ""
        for _ in range(_MOST_PAUSES):
            try:
                async with session.post(self.url + route, json=body) as response:
                    if response.status < HTTPStatus.BAD_REQUEST:
                        return await response.json(), response.headers
                    fault = f"{response.status} {(await response.text())[:300]}"
                    if response.status not in _BUSY:
                        break
            except aiohttp.ClientError as error:
                fault = repr(error)
            _LOG.info("gateway_busy", route=route, fault=fault)
            await asyncio.sleep(_PAUSE_S)
        raise BrokerError(f"the gateway at {self.url}{route} answers: {fault}")


@dataclass(frozen=True, slots=True)
class Reply:
    """What the gateway answered."""

    text: str
    rollout_id: str
    receipt: str | None
    versions: list[int]
