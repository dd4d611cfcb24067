"""Requests wait for their version, answers for the proof of the weights."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from schemas.records import now
from schemas.weights import WeightVersion
from transforms.generation.worker.gate import GENERATE_PATH, MIN_VERSION_HEADER, STATUS_PATH, install
from transforms.generation.worker.state import Metrics, WorkerState


def announcement(version):
    return WeightVersion(
        version=version, step=version, generation=1, manifest_sha256="0" * 64, dtype="float32", base_model="m",
        published_at=now(),
    )  # fmt: skip


async def apply(state, version):
    await state.apply(announcement(version), in_flight=False, pause_s=0.0)


@pytest.fixture
async def state():
    state = WorkerState(Metrics(CollectorRegistry()), 2048)
    await apply(state, 5)
    return state


@pytest.fixture
async def client(state):
    app = FastAPI()

    @app.post(GENERATE_PATH)
    async def generate() -> dict:
        return {"version": state.version, "running": state.requests_running}

    @app.post("/v1/completions")
    async def completions() -> str:
        return "for people"

    app.middleware_stack = app.build_middleware_stack()  # as vLLM's has been when the gate comes
    install(app, state, 0.2)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://worker") as client:
        yield client


def ask(client, version=None, path=GENERATE_PATH):
    headers = {} if version is None else {MIN_VERSION_HEADER: str(version)}
    return client.post(path, headers=headers)


@pytest.mark.parametrize("version", [None, 0, 4, 5])
async def test_a_version_that_is_served_passes_at_once(client, version):
    answer = await ask(client, version)
    assert answer.json() == {"version": 5, "running": 1}


async def test_a_newer_version_is_waited_for_and_answered_by_it(client, state):
    asking = asyncio.create_task(ask(client, 7))
    await apply(state, 6)
    await asyncio.sleep(0.05)
    assert not asking.done()
    await apply(state, 8)
    assert (await asking).json()["version"] == 8


async def test_a_waiting_request_does_not_count_as_running(client, state):
    asking = asyncio.create_task(ask(client, 6))
    await asyncio.sleep(0.05)
    assert state.requests_running == 0
    await apply(state, 6)
    await asking
    assert state.requests_running == 0


async def test_a_version_that_does_not_come_is_answered_503(client):
    answer = await ask(client, 6)
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "weight version 6 is not here after 0.2 s, serving 5"


@pytest.mark.parametrize("header", ["abc", "", "-1", "1.5", "9" * 19])
async def test_a_header_that_is_not_a_whole_number_is_answered_400(client, header):
    answer = await ask(client, header)
    assert answer.status_code == 400
    assert MIN_VERSION_HEADER in answer.json()["error"]["message"]


async def test_other_routes_pass_whatever_the_header_says(client):
    answer = await ask(client, "abc", "/v1/completions")
    assert answer.json() == "for people"


async def test_an_answer_waits_until_fresh_weights_are_proven(client, state):
    state.begin_update()
    asking = asyncio.create_task(ask(client))
    await asyncio.sleep(0.05)
    assert not asking.done()
    await apply(state, 6)
    assert (await asking).status_code == 200


async def test_a_worker_that_stops_sends_waiting_requests_away(client, state):
    asking = asyncio.create_task(ask(client, 6))
    await asyncio.sleep(0.05)
    await state.stop()
    answer = await asking
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "the worker stops")


async def test_the_status_route_tells_what_is_served(client, state):
    state.refuse("bad_files")
    answer = await client.get(STATUS_PATH)
    assert answer.json() == {
        "version": 5,
        "step": 5,
        "generation": 1,
        "dtype": "float32",
        "base_model": "m",
        "updates": 1,
        "updates_in_flight": 0,
        "refused": 1,
        "requests_running": 0,
        "max_model_len": 2048,
    }
