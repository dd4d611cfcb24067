"""The client of judges and reward models, against a real server that misbehaves in every way."""

import asyncio
import gzip
import json
import socket
import time
import traceback

import msgspec
import pytest

from schemas.errors import ConfigError, ServiceError, VerdictError
from schemas.services import ServiceConfig
from tests.support.judges import ServiceServer, drips, first, resets, sends, slowly, status
from transforms import metrics
from transforms.rewards import service as module
from transforms.rewards.service import MAX_ANSWER_BYTES, Service

FINE = {"number": 7}
QUICK = {"timeout_s": 1.0, "attempts": 3, "open_s": 0.1, "patience_s": 1.0}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.05)


@pytest.fixture
def server():
    with ServiceServer(sends(FINE)) as server:
        yield server


class Numbered(msgspec.Struct):
    number: int


def read(body):
    return msgspec.json.decode(body, type=Numbered).number


async def ask(config, times=1, settings=None):
    """What each of so many requests at once gives: a number, or the error."""
    service = Service("judge", "test", ServiceConfig(**{**QUICK, **config, **(settings or {})}))
    try:
        return await asyncio.gather(
            *(service.ask("/v1/chat/completions", {"a": 1}, read) for _ in range(times)), return_exceptions=True
        )
    finally:
        await service.close()


async def test_an_answer_is_read_and_the_key_sent_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    assert await ask({"url": server.url + "/prefix/", "key_env": "JUDGE_KEY"}) == [7]
    (asked,) = server.requests
    assert asked.path == "/prefix/v1/chat/completions"
    assert asked.headers["Authorization"] == "Bearer s3cret"
    assert asked.json == {"a": 1}


async def test_a_key_that_is_missing_is_named_and_one_that_is_repeated_is_hidden(server, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="JUDGE_KEY"):
        await ask({"url": server.url, "key_env": "JUDGE_KEY"})
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    server.behaviour = status(400, b"Bearer s3cret is no good")
    (error,) = await ask({"url": server.url, "key_env": "JUDGE_KEY"})
    assert error.reason == "judge_refused"
    assert "s3cret" not in error.detail
    assert "*** is no good" in error.detail


def no_header(handler, _asked):
    """Repeats the key where a header should be."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nBearer s3cret\r\n\r\n")


def no_status(handler, _asked):
    """Repeats the key where a status should be."""
    handler.wfile.write(b"Bearer s3cret\r\n\r\n")


@pytest.mark.parametrize("behaviour", [no_header, no_status, status(502, b"Bearer s3cret"), sends(b"Bearer s3cret")])
async def test_a_key_that_is_repeated_is_in_no_traceback(server, monkeypatch, behaviour):
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    server.behaviour = behaviour
    service = Service("judge", "test", ServiceConfig(url=server.url, key_env="JUDGE_KEY", **QUICK | {"attempts": 1}))
    with pytest.raises(ServiceError) as raised:
        service._read(await service._post("/", b"{}"), int)
    await service.close()
    assert "***" in str(raised.value)
    assert "s3cret" not in "".join(traceback.format_exception(raised.value))


FAILURES = {
    "html": sends(b"<html>502 Bad Gateway</html>"),
    "wrong json": sends({"other": 1}),
    "no json number": sends(b'{"number": "seven"}'),
    "deep json": sends(b"[" * 100_000),
    "500": status(500),
    "502": status(502),
    "reset": resets,
    "too long": sends(b" " * (10 << 20)),
    "cut": sends(b'{"number"', Content_Length="5000"),
    "gzip": sends(gzip.compress(json.dumps(FINE).encode()), Content_Encoding="gzip"),
    "header": sends(FINE, X="y" * 100_000),
    "not http": lambda handler, _: handler.wfile.write(b"\x00\xff" * 1000),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_a_failure_is_tried_again_so_often_and_then_null(server, kind):
    server.behaviour = first(FAILURES[kind], FAILURES[kind], sends(FINE))
    assert await ask({"url": server.url}) == [7]
    server.behaviour = FAILURES[kind]
    server.requests.clear()
    (error,) = await ask({"url": server.url})
    assert isinstance(error, VerdictError)
    assert error.reason == "judge_failed"
    assert len(server.requests) == 3


@pytest.mark.timed
async def test_a_body_that_drips_ends_with_the_time_and_a_long_one_is_not_read_to_its_end(server):
    server.behaviour = drips
    started = time.monotonic()
    (error,) = await ask({"url": server.url}, settings={"timeout_s": 0.3, "attempts": 2})
    assert (error.reason, "no answer within 0.3 s" in error.detail) == ("judge_failed", True)
    assert time.monotonic() - started < 2
    written = []

    def endless(handler, _asked):
        handler.send_response(200)
        handler.end_headers()
        while True:  # until the client lets go
            written.append(handler.wfile.write(b" " * 65_536))

    server.behaviour = endless
    (error,) = await ask({"url": server.url}, settings={"attempts": 1, "timeout_s": 20, "patience_s": 20})
    assert f"longer than {MAX_ANSWER_BYTES} bytes" in error.detail
    assert sum(written) < 20 * MAX_ANSWER_BYTES


@pytest.mark.parametrize("code", [400, 413, 422])
async def test_what_is_refused_is_not_asked_again(server, code):
    server.behaviour = status(code, b'{"error": {"message": "too long for me"}}')
    (error,) = await ask({"url": server.url})
    assert (error.reason, "too long for me" in error.detail) == ("judge_refused", True)
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(server, code):
    with ServiceServer(sends(FINE)) as elsewhere:
        server.behaviour = status(code, Location=elsewhere.url + "/v1/chat/completions")
        (error,) = await ask({"url": server.url}, settings={"timeout_s": 0.3, "patience_s": 0.3})
        assert error.reason == "judge_unavailable"
        assert str(code) in error.detail
        assert elsewhere.requests == []


@pytest.mark.parametrize("code", [401, 403, 404, 429, 503])
@pytest.mark.timed
async def test_a_service_that_does_not_take_requests_is_waited_for_and_asked_ever_less(server, code):
    server.behaviour = first(*[status(code)] * 6, sends(FINE))
    assert await ask({"url": server.url}, settings={"patience_s": 10}) == [7], "no attempt was used up"
    assert len(server.requests) == 7
    server.behaviour = status(code)
    server.requests.clear()
    started = time.monotonic()
    errors = await ask({"url": server.url}, times=50, settings={"open_after": 2, "concurrency": 4})
    assert {error.reason for error in errors} == {"judge_unavailable"}
    assert 0.9 < time.monotonic() - started < 3
    assert len(server.requests) < 15, "50 answers waited for a second"


async def test_retry_after_is_kept(server):
    server.behaviour = first(status(429, Retry_After="1"), sends(FINE))
    assert await ask({"url": server.url}, settings={"patience_s": 10}) == [7]
    assert server.requests[1].at_s - server.requests[0].at_s > 0.95


async def test_an_outage_that_ends_loses_nothing():
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    asking = asyncio.create_task(
        ask({"url": f"http://127.0.0.1:{port}"}, times=40, settings={"patience_s": 20, "concurrency": 8})
    )
    await asyncio.sleep(0.7)
    with ServiceServer(sends(FINE), port) as server:
        assert await asking == [7] * 40
        assert server.most_at_once <= 8


async def test_a_slow_service_is_waited_for_longer_than_patience(server):
    server.behaviour = slowly(0.3, sends(FINE))
    settings = {"concurrency": 1, "patience_s": 1.0, "timeout_s": 1.0}
    assert await ask({"url": server.url}, times=8, settings=settings) == [7] * 8, "2.4 s, but somebody is answered"


async def test_a_request_under_way_is_not_given_up_when_patience_ends(server):
    server.behaviour = first(slowly(1.0, status(500)), slowly(1.0, sends(FINE)))
    settings = {"concurrency": 1, "patience_s": 1.6, "timeout_s": 1.6, "attempts": 1}
    error, number = await ask({"url": server.url}, times=2, settings=settings)
    assert (error.reason, number) == ("judge_failed", 7)
    assert len(server.requests) == 2


async def test_an_answer_that_kills_the_service_each_time_ends_as_failed_and_others_go_on(server):
    def dies_of_two(handler, asked):
        (resets if asked.json["a"] == 2 else sends(FINE))(handler, asked)

    server.behaviour = dies_of_two
    service = Service("judge", "test", ServiceConfig(**{**QUICK, "url": server.url, "open_after": 2}))
    bodies = [{"a": 2 if index == 5 else 1} for index in range(40)]
    asked = (service.ask("/", body, read) for body in bodies)
    got = await asyncio.gather(*asked, return_exceptions=True)
    await service.close()
    assert [each for each in got if each == 7] == [7] * 39
    assert got[5].reason == "judge_failed" or got[5].reason == "judge_unavailable"


async def test_nothing_but_refusals_opens_the_breaker(server):
    server.behaviour = status(400)
    errors = await ask({"url": server.url}, times=100, settings={"open_after": 3, "concurrency": 1})
    assert {error.reason for error in errors} == {"judge_refused", "judge_unavailable"}
    assert len(server.requests) < 15


async def test_what_came_of_requests_is_counted(server):
    def count(outcome):
        return metrics.SERVICE_REQUESTS.labels("judge:test", outcome)._value.get()

    before = {outcome: count(outcome) for outcome in ("answered", "refused", "failed", "unavailable")}
    server.behaviour = first(status(503), status(500), sends(FINE), status(400))
    await ask({"url": server.url})
    await ask({"url": server.url})
    assert {outcome: count(outcome) - before[outcome] for outcome in before} == dict.fromkeys(before, 1.0)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://user:pw@host", "http://host/?q=1", "127.0.0.1:80"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="url"):
        ServiceConfig(url=url)
