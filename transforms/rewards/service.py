"""The client of one service that judges or converses: retries, circuit breaker, and distrust of what comes back.

    ask ──► a place (concurrency) ──► breaker ──► POST ──► status, size ──► read ──► what it says
     ▲                                              │
     └── pause, longer each time ◄── did not work ──┘   so often: {reward}_failed
                                                        nobody was answered for patience_s: {reward}_unavailable

The call is a seam. An answer is read up to a limit and within a time; a redirect, a page of HTML and a
body that is not what was asked for are failures of the service. What it says of the request itself
(400, 413, 422) ends the attempts at once: {reward}_refused.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any, Final, TypeVar

import aiohttp

from schemas.errors import ConfigError, ServiceError, ServiceUnavailable, VerdictError
from schemas.secrets import hide, without_secrets
from schemas.services import ServiceConfig
from transforms import metrics
from transforms.rewards.breaker import Breaker
from transforms.statuses import REFUSALS, UNAVAILABLE

_CONNECT_TIMEOUT_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 10.0
_LONGEST_RETRY_AFTER_S: Final = 60.0
MAX_ANSWER_BYTES: Final = 1 << 20
"""Longest body that is read: a verdict is a few hundred bytes."""
_DETAIL_CHARACTERS: Final = 200
_UNAVAILABLE: Final = UNAVAILABLE | {HTTPStatus.PAYMENT_REQUIRED}
"""What says something of the service and nothing of the request: a mistake in the configuration loses nothing."""

AnswerT = TypeVar("AnswerT")


class _Refusal(ServiceError):
    """The service understood the request and refuses it.

    Nothing but refusals is a mistake in the configuration that would use up every prompt there is, so the breaker
    counts them too.
    """


_OUTCOMES: Final[dict[type, str]] = {_Refusal: "refused", ServiceUnavailable: "unavailable"}


class Service:
    """One judge or reward model. Lives in one event loop, in which its first request is made.

    Args:
        reward: whose reasons its failures have, such as ``judge``.
        name: as the configuration calls it.
        config: of it.

    Raises:
        ConfigError: the environment variable that holds its key is not set.
    """

    def __init__(self, reward: str, name: str, config: ServiceConfig) -> None:
        self._reward, self._config = reward, config
        self.name = f"{reward}:{name}"
        self._key = _key_of(self.name, config)
        self._places = asyncio.Semaphore(config.concurrency)
        self._breaker = Breaker(self.name, config.open_after, config.open_s)
        self._session: aiohttp.ClientSession | None = None
        self._waiting = metrics.SERVICE_WAITING.labels(self.name)

    async def close(self) -> None:
        """Lets go of its connections."""
        if self._session is not None:
            await self._session.close()

    async def ask(self, route: str, body: dict[str, Any], read: Callable[[bytes], AnswerT]) -> AnswerT:
        """Sends a request until it is answered.

        Args:
            route: after the base URL.
            body: sent as JSON.
            read: makes something of the answer's body. A ``ValueError`` means that it is no answer, and the
                request is sent again; a ``VerdictError`` ends it.

        Raises:
            VerdictError: ``{reward}_refused``, ``{reward}_failed`` or ``{reward}_unavailable``, or that of ``read``.
        """
        payload = json.dumps(body).encode()
        began, failed, pause_s, fault = time.monotonic(), 0, _FIRST_PAUSE_S, "no request was sent"
        with self._waiting.track_inprogress():
            while (left_s := self._patience_left_s(began)) > 0:
                try:
                    async with self._turn(left_s) as probe:
                        return await self._once(route, payload, read)
                except TimeoutError:
                    continue  # others may have been answered meanwhile
                except _Refusal as error:
                    raise VerdictError(f"{self._reward}_refused", str(error)) from error
                except ServiceError as error:
                    fault, again_s = str(error), _retry_after_s(error)
                    # What befalls a probe says more of the service than of the answer.
                    failed += not (probe or isinstance(error, ServiceUnavailable))
                if failed >= self._config.attempts:
                    raise VerdictError(f"{self._reward}_failed", f"{failed} requests failed; {fault}")
                await asyncio.sleep(max(again_s, pause_s * random.uniform(0.5, 1.5)))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        waited = f"{self.name} answered nobody for {self._config.patience_s:g} s"
        raise VerdictError(f"{self._reward}_unavailable", f"{waited}; {fault}")

    def _patience_left_s(self, began: float) -> float:
        """Since the service last answered anybody: one that is slow, but answers, is waited for."""
        return max(began, self._breaker.worked_s) + self._config.patience_s - time.monotonic()

    @asynccontextmanager
    async def _turn(self, most_s: float) -> AsyncIterator[bool]:
        """One of the places for requests, once the breaker lets it through; whether as a probe.

        Raises:
            TimeoutError: it took longer than that to come. A request that is under way has its own limit.
        """
        async with AsyncExitStack() as turn:
            async with asyncio.timeout(most_s):
                await turn.enter_async_context(self._places)
                probe = await turn.enter_async_context(self._breaker.passage())
            yield probe

    async def _once(self, route: str, payload: bytes, read: Callable[[bytes], AnswerT]) -> AnswerT:
        with metrics.SERVICE_SECONDS.labels(self.name).time():
            try:
                answer = self._read(await self._post(route, payload), read)
            except ServiceError as error:
                self._count(_OUTCOMES.get(type(error), "failed"))
                raise
        return answer

    def _count(self, outcome: str) -> None:
        metrics.SERVICE_REQUESTS.labels(self.name, outcome).inc()

    def _read(self, body: bytes, read: Callable[[bytes], AnswerT]) -> AnswerT:
        try:
            answer = read(body)
        except VerdictError:
            self._works()
            raise
        except (ValueError, RecursionError) as error:
            raise ServiceError(f"{self.name}: not an answer: {_excerpt(str(error))}") from None
        self._works()
        return answer

    def _works(self) -> None:
        self._breaker.works()
        self._count("answered")

    async def _post(self, route: str, payload: bytes) -> bytes:
        """The body of an answer with status 200.

        Raises:
            ServiceError: anything else came, or nothing.
        """
        session = self._session = self._session or self._open_session()
        with self._faults_told():
            async with session.post(
                self._config.url.rstrip("/") + route, data=payload, allow_redirects=False
            ) as response:
                body = await _read_some(response)
                status, headers = response.status, response.headers
        if status != HTTPStatus.OK:
            self._raise_for(status, body, headers.get("Retry-After", ""))
        if len(body) > MAX_ANSWER_BYTES:
            raise ServiceError(f"{self.name}: its answer is longer than {MAX_ANSWER_BYTES} bytes")
        return body

    def _open_session(self) -> aiohttp.ClientSession:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._config.timeout_s, sock_connect=_CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            auto_decompress=False,  # a small body that grows is not read
            trust_env=False,
        )

    @contextmanager
    def _faults_told(self) -> Iterator[None]:
        try:
            yield
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise ServiceUnavailable(f"{self.name}: {error}") from error
        except TimeoutError as error:
            raise ServiceError(f"{self.name}: no answer within {self._config.timeout_s:g} s") from error
        except aiohttp.ClientResponseError as error:  # it shows the request's headers, and the key there
            raise ServiceError(f"{self.name}: {error.status} {_excerpt(error.message)}") from None
        except (aiohttp.ClientError, ValueError) as error:  # ValueError: headers and status lines that are none
            raise ServiceError(f"{self.name}: {_excerpt(repr(error))}") from None

    def _raise_for(self, status: int, body: bytes, retry_after: str) -> None:
        message = f"{self.name}: {status} {_excerpt(body[:4096].decode(errors='replace'))}"
        if status in REFUSALS:
            raise _Refusal(message)
        if status in _UNAVAILABLE or status < HTTPStatus.BAD_REQUEST:
            raise ServiceUnavailable(message, _seconds(retry_after))
        raise ServiceError(message)


def _excerpt(text: str) -> str:
    """For people; a service that repeats the key does not get it into logs and topics."""
    return " ".join(without_secrets(text).split())[:_DETAIL_CHARACTERS]


def _key_of(service: str, config: ServiceConfig) -> str | None:
    if config.key_env is None:
        return None
    key = os.environ.get(config.key_env, "").strip()
    if not key:
        raise ConfigError(
            f"{service}: the environment variable {config.key_env} (key_env) is not set; put its key there"
        )
    return hide(key)


async def _read_some(response: aiohttp.ClientResponse) -> bytes:
    """The body, or a little more than is allowed of it; the rest is left where it is."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            response.close()
            break
    return bytes(body)


def _seconds(retry_after: str) -> float:
    return min(float(retry_after), _LONGEST_RETRY_AFTER_S) if retry_after.isascii() and retry_after.isdigit() else 0.0


def _retry_after_s(error: ServiceError) -> float:
    return error.retry_after_s if isinstance(error, ServiceUnavailable) else 0.0
