"""Which routes of a worker there are, and who may use them."""

import httpx
import pytest
from fastapi import FastAPI, WebSocket
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from transforms.generation.worker.doors import KEYED, OPEN
from transforms.generation.worker.gate import install
from transforms.generation.worker.state import Metrics, WorkerState

KEY = "a-key-of-the-test"
ELSEWHERE = (
    ("POST", "/pause"), ("POST", "/scale_elastic_ep"), ("POST", "/invocations"), ("GET", "/openapi.json"),
    ("GET", "/docs"), ("GET", "/"), ("GET", "/inference/v1/generate"), ("POST", "/health"), ("GET", "/health/"),
    ("POST", "//inference/v1/generate"), ("OPTIONS", "/v1/completions"), ("POST", "/v1/responses"),
)  # fmt: skip


class Everything:
    """Stands for vLLM's application: it has every route there is."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})


def application(key):
    app = FastAPI()
    app.user_middleware.insert(0, Middleware(Everything))
    app.middleware_stack = app.build_middleware_stack()
    install(app, WorkerState(Metrics(CollectorRegistry()), 2048), 0.2, key)

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await socket.accept()

    return app


@pytest.fixture(params=[None, KEY], ids=["open", "locked"])
def key(request):
    return request.param


@pytest.fixture
async def client(key):
    transport = httpx.ASGITransport(application(key))
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        yield client


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("route", sorted(OPEN))
async def test_figures_and_health_are_open(client, route):
    assert (await client.request(*route)).text == "inside"


@pytest.mark.parametrize("route", ELSEWHERE)
async def test_a_route_that_is_not_on_the_list_is_not_there(client, route):
    answer = await client.request(*route, headers=bearer(KEY))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, 404)


@pytest.mark.parametrize("route", sorted(KEYED))
async def test_who_uses_the_model_shows_the_key(client, route, key):
    for headers in (
        {},
        bearer("wrong"),
        bearer(""),
        bearer(KEY + "x"),
        {"Authorization": KEY},
        {"Authorization": "Bearer"},
    ):
        answer = await client.request(*route, headers=headers)
        assert answer.status_code == (401 if key else 200), headers
        assert KEY not in answer.text
    for scheme in ("Bearer", "bearer"):
        assert (await client.request(*route, headers={"Authorization": f"{scheme} {KEY}"})).text == "inside"


def test_web_sockets_are_closed(key):
    with (
        TestClient(application(key)) as client,
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/v1/realtime", headers=bearer(KEY)),
    ):
        pass
