"""The simulated engine as a process answers as it does in a thread, whoever of its two servers does it."""

import http.client
import json

import pytest

from tests.benchmarks.stack import EngineProcess
from tests.pipeline.rollout_process import wait_for
from transforms.generation.engine import read_completions

ROUTE = "/inference/v1/generate"
BODY = {"token_ids": [7, 6], "sampling_params": {"n": 2, "max_tokens": 64}}
TOKENS = 5


@pytest.fixture(scope="module")
def engine():
    started = EngineProcess(fixed_tokens=TOKENS, obliging=1)
    try:
        wait_for(started.is_healthy, 60)
        yield started
    finally:
        started.end()


@pytest.fixture
def connection(engine):
    opened = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=60)
    yield opened
    opened.close()


def ask(connection, body, **headers):
    connection.request("POST", ROUTE, json.dumps(body), {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    return response.status, response.read()


def read(body):
    completions = read_completions("http://x", body, 2, 100)
    assert [len(each.token_ids) for each in completions] == [TOKENS] * 2
    return completions[0].spans[0].version


def test_a_connection_takes_one_request_after_the_other(connection):
    for version in (1, 1, 3):
        status, body = ask(connection, BODY, **{"X-AsyncFlow-Min-Version": str(version)})
        assert (status, read(body)) == (200, version)


def test_after_a_stream_the_same_connection_answers_on(connection):
    status, body = ask(connection, BODY)
    assert status == 200
    status, events = ask(connection, {**BODY, "stream": True})
    assert (status, events.count(b"data: ")) == (200, TOKENS + 1)
    assert ask(connection, BODY)[0] == 200
    read(body)


def test_a_request_that_comes_in_pieces_is_answered(connection):
    body = json.dumps({**BODY, "token_ids": [7] * 50_000}).encode()
    connection.putrequest("POST", ROUTE)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    for begin in range(0, len(body), 10_000):
        connection.send(body[begin : begin + 10_000])
    response = connection.getresponse()
    assert response.status == 200
    read(response.read())


def test_other_routes_and_requests_that_are_none_are_answered_too(connection):
    connection.request("GET", "/health")
    assert connection.getresponse().read() == b""
    connection.request("POST", "/nowhere", "{}")
    response = connection.getresponse()
    assert (response.status, bool(response.read())) == (404, True)
