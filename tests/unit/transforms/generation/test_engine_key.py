"""The workers' key goes with every request, and into no message about who is no worker."""

import asyncio
import contextlib
import json
import traceback

import pytest

from schemas import traces
from schemas.config import WorkerConfig
from schemas.errors import EngineError, EngineRefusal
from tests.support.spans import tracing
from tests.unit.transforms.generation.test_engine import REQUEST
from transforms.generation.engine import generate, open_session
from transforms.generation.streaming import generate_streamed
from transforms.generation.workers import Worker, Workers

CANARY = "canary-of-the-workers"
GARBAGE = b"SSH-2.0-OpenSSH\r\n\r\n"
REDIRECT = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def echo(status, body):
    """The response of a server that repeats what it was asked."""
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


HEADER = f"Authorization: Bearer {CANARY}"
FAR = "x" * 490 + HEADER
"""The key would be cut in two."""
CHOICE = {
    "index": 0, "token_ids": [1], "logprobs": {"content": [{"logprob": -1.0}]}, "finish_reason": "stop",
    "weight_versions": [{"version": HEADER[15:], "start": 0}],
}  # fmt: skip
ECHOES = {
    "plain text": echo(500, HEADER.encode()),
    "where it is cut": echo(400, FAR.encode()),
    "an error of vLLM": echo(400, json.dumps({"error": {"message": HEADER}}).encode()),
    "an error, where it is cut": echo(503, json.dumps({"error": {"message": FAR}}).encode()),
    "no answer": echo(200, HEADER.encode()),
    "a weight version": echo(200, json.dumps({"choices": [CHOICE, CHOICE | {"index": 1}]}).encode()),
    "a weight version of an event": echo(200, b"data: %s\n\n" % json.dumps({"choices": [CHOICE]}).encode()),
    "an event": echo(200, b'data: {"error": {"code": 500, "message": "%s"}}\n\n' % HEADER.encode()),
    "a status line": f"HTTP/1.1 200 OK\r\n{HEADER}\r\n{CANARY}\r\n\r\n".encode(),
}


@contextlib.asynccontextmanager
async def answering(said):
    """A port that says this to whoever asks; yields its URL and the beginnings of what it was asked."""
    asked = []

    async def answer(reader, writer):
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(said)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


async def plain(session, url):
    await generate(session, url, REQUEST, 1000)


async def streamed(session, url):
    await generate_streamed(session, url, REQUEST, 1000, print)


@pytest.mark.parametrize("ask", [plain, streamed])
@pytest.mark.parametrize(("said", "told"), [(GARBAGE, "400 Bad status line"), (REDIRECT, "307")])
async def test_the_key_is_in_no_message(tmp_path, ask, said, told):
    with tracing(tmp_path) as read:
        async with answering(said) as (url, asked), open_session(60, CANARY) as session:
            with (
                pytest.raises(EngineError, match=told) as raised,
                traces.spanning(traces.begin("a", None, "a"), "engine"),
            ):
                await ask(session, url)
        (span,) = read()
    assert len(asked) == 1, "a redirect is not followed"
    assert CANARY.encode() in asked[0]
    seen = [repr(raised.value), str(raised.value), span.fault, *traceback.format_exception(raised.value)]
    assert CANARY not in "".join(seen)


@pytest.mark.parametrize("ask", [plain, streamed])
@pytest.mark.parametrize("said", ECHOES.values(), ids=list(ECHOES))
async def test_a_key_that_is_echoed_is_in_no_message(monkeypatch, ask, said):
    monkeypatch.setenv("CANARY", CANARY)
    key = WorkerConfig(api_key="{env:CANARY}").key()
    async with answering(said) as (url, asked), open_session(60, key) as session:
        with pytest.raises((EngineError, EngineRefusal)) as raised:
            await ask(session, url)
    assert CANARY.encode() in asked[0]
    assert CANARY[:9] not in "".join([repr(raised.value), *traceback.format_exception(raised.value)])


async def test_a_look_follows_no_redirect():
    async with answering(REDIRECT) as (url, asked), open_session(60, CANARY) as session:
        workers = Workers((), session, 0)
        assert not await workers.is_healthy(Worker(url))
        workers.close()
    assert len(asked) == 1
