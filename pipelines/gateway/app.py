"""The routes of the gateway, and what all of them have in common.

POST /v1/chat/completions   OpenAI's, streamed or not          GET /v1/models
POST /feedback              a judgement                        GET /feedback/{rollout id}   what it did
GET  /                      the page                           GET /metrics, /health
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI, HTTPException
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from pipelines.gateway import page
from pipelines.gateway.bodies import read_body
from pipelines.gateway.chat import ChatRequest, Teller, headers_of, versions_of
from pipelines.gateway.guard import Guard, refusal
from pipelines.gateway.judging import read_fields, user_in
from pipelines.gateway.people import set_cookie, user_of
from schemas.errors import AsyncFlowError, BrokerError, EngineError, EngineRefusal, EngineUnavailable, RecordError
from schemas.identity import RolloutId
from schemas.limits import MAX_FEEDBACK_BYTES
from schemas.records import isoformat
from schemas.trace_context import HEADER
from schemas.trajectories import Sample
from transforms.buckets import Buckets

if TYPE_CHECKING:
    from pipelines.gateway.desk import Answer, Desk
    from pipelines.gateway.fates import Fates
    from pipelines.gateway.judging import Judging
    from schemas.config import RunConfig

_STATIC: Final = Path(__file__).with_name("static")
_STREAM_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_AGAIN: Final = {"Retry-After": "2"}
_LOOK_S: Final = 0.5
"""Pause between two looks whether a client that waits for a whole answer is still there."""
_STATUS: Final[tuple[tuple[type[AsyncFlowError], HTTPStatus], ...]] = (
    (RecordError, HTTPStatus.BAD_REQUEST),
    (EngineRefusal, HTTPStatus.BAD_REQUEST),
    (EngineUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (BrokerError, HTTPStatus.SERVICE_UNAVAILABLE),
    (EngineError, HTTPStatus.BAD_GATEWAY),
)


@dataclass(frozen=True)
class Parts:
    """What the routes are made of."""

    config: RunConfig
    desk: Desk
    judging: Judging
    fates: Fates
    issue: Callable[[RolloutId, str], str | None]
    """A receipt for an answer and its reader; null where none are wanted."""


class Routes:
    """The handlers; one a route."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config = parts.config
        self._model = Path(parts.config.model.path).name or parts.config.name

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        body = await read_body(request, self._config.gateway.max_prompt_bytes)
        wanted = ChatRequest.read(body)
        if wanted.model not in (None, "", self._model):
            raise HTTPException(HTTPStatus.NOT_FOUND, f"no model {wanted.model!r:.80}; this is {self._model!r}")
        user = user_of(request, self._config.gateway, wanted.user)
        answer = await self._parts.desk.ask(wanted.to_exchange(user), request.headers.get(HEADER))
        receipt = self._parts.issue(answer.rollout, user)
        teller = Teller(self._model, answer.rollout, receipt)
        if not wanted.stream:
            return await self._whole(request, answer, teller, receipt)
        with_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
        headers = {**headers_of(answer.rollout, receipt), **_STREAM_HEADERS}
        events = _events(answer, teller, with_usage=with_usage)
        return BoundedStream(events, answer.stop, self._config.rollout.request_timeout_s, headers)

    async def _whole(self, request: Request, answer: Answer, teller: Teller, receipt: str | None) -> Response:
        answering = asyncio.create_task(_gather(answer))
        try:
            while not (await asyncio.wait([answering], timeout=_LOOK_S))[0]:
                if await request.is_disconnected():
                    return Response(status_code=499)  # nobody reads it
            text, sample = answering.result()
        finally:
            answering.cancel()
            answer.stop()
        headers = headers_of(answer.rollout, receipt, versions_of(sample))
        return JSONResponse(teller.whole(sample, text), headers=headers)

    async def models(self) -> dict[str, Any]:
        """``GET /v1/models``."""
        card = {"id": self._model, "object": "model", "created": 0, "owned_by": self._config.name}
        return {"object": "list", "data": [card], "asyncflow": {"version": self._parts.fates.newest_version}}

    async def feedback(self, request: Request) -> Response:
        """``POST /feedback``."""
        body = await read_body(request, MAX_FEEDBACK_BYTES)
        fields = read_fields(body, request.headers.get("content-type", ""))
        user = user_of(request, self._config.gateway, user_in(fields))
        accepted = await self._parts.judging.accept(fields, user, request.headers.get(HEADER))
        self._parts.fates.receive(accepted)
        given = accepted.feedback
        if page.wants_fragment(request):
            return page.fate(request, self._parts.fates.report(given.rollout, user), HTTPStatus.ACCEPTED)
        body_out = {"feedback_id": given.feedback_id, "rollout_id": given.rollout_id, "at": isoformat(given.at)}
        return JSONResponse(body_out, HTTPStatus.ACCEPTED)

    async def fate(self, request: Request, rollout_id: str, user: str | None = None) -> Response:
        """``GET /feedback/{rollout id}``; a program names its user in the query."""
        try:
            rollout = RolloutId.parse(rollout_id)
        except ValueError as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from error
        report = self._parts.fates.report(rollout, user_of(request, self._config.gateway, user))
        if page.wants_html(request):
            return page.fate(request, report)
        return JSONResponse(report.model_dump(mode="json"))

    async def index(self, request: Request) -> Response:
        """``GET /``."""
        response = page.index(self._config, self._parts.fates.newest_version)
        if not self._config.gateway.trusts_user_header:
            set_cookie(request, response)
        return response

    async def version(self) -> Response:
        """``GET /version``: the newest announced weight version, as a piece of the page."""
        return page.version(self._parts.fates.newest_version)

    async def metrics(self) -> Response:
        """``GET /metrics``."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def health(self) -> Response:
        """``GET /health``."""
        return Response(status_code=HTTPStatus.OK)


class BoundedStream(StreamingResponse):
    """Events for a reader who may be slow, but not for ever; who leaves before the end ends the answer."""

    def __init__(
        self, events: AsyncIterator[bytes], stop: Callable[[], None], longest_s: float, headers: dict[str, str]
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._stop, self._longest_s = stop, longest_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serves the response."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._longest_s):
                    await super().__call__(scope, receive, send)
        finally:
            self._stop()


async def _events(answer: Answer, teller: Teller, *, with_usage: bool) -> AsyncIterator[bytes]:
    yield _event(teller.first())
    try:
        async for piece in answer.pieces():
            yield _event(teller.piece(piece))
        sample = await answer.sample()
    except AsyncFlowError as error:
        fault = {"message": f"the answer broke off: {error}"[:600], "type": "broken_off", "code": int(status_of(error))}
        yield _event({"error": fault})
        return
    yield _event(teller.last(sample))
    if with_usage:
        yield _event(teller.usage(sample))
    yield b"data: [DONE]\n\n"


async def _gather(answer: Answer) -> tuple[str, Sample]:
    text = "".join([piece async for piece in answer.pieces()])
    return text, await answer.sample()


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def status_of(error: AsyncFlowError) -> HTTPStatus:
    """What an error is in HTTP."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def build(parts: Parts) -> FastAPI:
    """The application."""
    app = FastAPI(title=parts.config.gateway.title, docs_url=None, redoc_url=None, openapi_url=None)
    routes = Routes(parts)
    add = app.add_api_route
    add("/v1/chat/completions", routes.chat, methods=["POST"])
    add("/v1/models", routes.models, methods=["GET"])
    add("/feedback", routes.feedback, methods=["POST"])
    add("/feedback/{rollout_id:path}", routes.fate, methods=["GET"])
    add("/", routes.index, methods=["GET"])
    add("/version", routes.version, methods=["GET"])
    add("/metrics", routes.metrics, methods=["GET"])
    add("/health", routes.health, methods=["GET"])
    app.mount("/static", StaticFiles(directory=_STATIC))
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(AsyncFlowError, _failed)
    gateway = parts.config.gateway
    app.add_middleware(Guard, addresses=Buckets(gateway.address_rate_per_s, gateway.address_burst))
    return app


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    answer = refusal(error.status_code, error.detail)
    answer.headers.update(error.headers or {})
    return answer


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, AsyncFlowError)
    message = error.detail if isinstance(error, RecordError) else str(error)
    status = status_of(error)
    headers = _AGAIN if status is HTTPStatus.SERVICE_UNAVAILABLE else None
    return await _refused(request, HTTPException(status, message, headers))
