"""The workers' key goes with every request, and into no message about who is no worker."""

import asyncio
import contextlib
import traceback

import pytest

from schemas import traces
from schemas.errors import EngineError
from tests.support.spans import tracing
from tests.unit.transforms.generation.test_engine import REQUEST
from transforms.generation.engine import generate, open_session
from transforms.generation.streaming import generate_streamed
from transforms.generation.workers import Worker, Workers

CANARY = "canary-of-the-workers"
GARBAGE = b"SSH-2.0-OpenSSH\r\n\r\n"
REDIRECT = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


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


async def test_a_look_follows_no_redirect():
    async with answering(REDIRECT) as (url, asked), open_session(60, CANARY) as session:
        workers = Workers((), session, 0)
        assert not await workers.is_healthy(Worker(url))
        workers.close()
    assert len(asked) == 1
