"""The routes of the server of a reward model.

POST /v1/score   one answer      GET /health, /metrics
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, HTTPException
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from pipelines.gateway.bodies import read_body
from pipelines.reward_model import metrics
from pipelines.reward_model.batcher import Batcher, NotFinite, ScoringFailed, TooManyWaiting
from pipelines.reward_model.classifier import Classifier
from schemas.errors import RecordError
from schemas.records import first_fault
from schemas.scoring import MAX_SCORE_BYTES, SCORE_ROUTE, ScoreReply, ScoreRequest

_STATUS: Final[dict[type[Exception], HTTPStatus]] = {
    RecordError: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotFinite: HTTPStatus.UNPROCESSABLE_ENTITY,
    TooManyWaiting: HTTPStatus.SERVICE_UNAVAILABLE,
    ScoringFailed: HTTPStatus.INTERNAL_SERVER_ERROR,
}
_AGAIN: Final[dict[type[Exception], dict[str, str]]] = {TooManyWaiting: {"Retry-After": "1"}}


def build(classifier: Classifier, batcher: Batcher) -> FastAPI:
    """The application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def score(request: Request) -> Response:
        asked = _parse(await read_body(request, MAX_SCORE_BYTES))
        with _failures_told():
            if classifier.knows(asked.vocabulary):
                ids, read = classifier.read(asked)
            else:  # a tokenizer may take long
                ids, read = await asyncio.to_thread(classifier.read, asked)
            number = await batcher.score(ids)
        metrics.ROWS.labels(read).inc()
        return Response(ScoreReply(score=number, read=read).model_dump_json(), media_type="application/json")

    async def health() -> Response:
        return Response()

    async def figures() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    app.add_api_route(SCORE_ROUTE, score, methods=["POST"], response_model=None)
    app.add_api_route("/health", health, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", figures, methods=["GET"], response_model=None)
    return app


@contextmanager
def _failures_told() -> Iterator[None]:
    """A status says whether to come again: not with what the model cannot read or makes no number of."""
    try:
        yield
    except tuple(_STATUS) as error:
        metrics.FAILURES.labels(type(error).__name__).inc()
        raise HTTPException(_STATUS[type(error)], str(error), headers=_AGAIN.get(type(error))) from error


def _parse(body: bytes) -> ScoreRequest:
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, first_fault(error)) from error
