"""A server with the HTTP interface of vLLM 0.32 and no model behind it: a named instrument of tests.

It answers ``POST /inference/v1/generate`` with seeded random tokens, after a time drawn from a
distribution, under a weight version that can be set while it runs, and misbehaves on request.
With ``stream`` it sends one event a token, as vLLM does, ``token_s`` apart.
It never stands in for an engine where results are reported as vLLM's.

    with SimulatedEngine(seed=1) as engine:
        engine.version = 2
        engine.faults.append("refuse")     # the next request is refused
        engine.url, engine.requests        # where it listens, what it was asked

How long an answer takes is ``mean_s`` (exponential), ``token_s`` times the longest of its samples, or
both; with ``slots`` (set from the start) only so many sequences are computed at once and others wait, as
in an engine that is full. In a run ``POST /simulated`` with ``{"token_s": 0.01}`` sets any of its numbers.

As a process: ``python -m tests.support.simulated_engine --port 9000 --set token_s=0.01 --set slots=64``;
with ``--exit-on 8`` it ends at once when it is asked for a prompt that begins with token 8.
"""

import argparse
import asyncio
import json
import math
import os
import random
import threading
from collections import deque
from dataclasses import dataclass, field

import msgspec
import uvloop
from aiohttp import web

_REMEMBERED = 100_000
_STREAM_FAULTS = ("break_off", "error_event", "no_end")
_PIECES = 10
"""In which an answer is computed where its speed depends on others."""
_PLAIN = b"POST /inference/v1/generate HTTP/1.1\r\n"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_BACKLOG = 2048
"""Connections that wait to be accepted, as at vLLM's server; beyond them a client is let in a second or more later."""
END = 2
"""The end-of-sequence token of the tiny model."""


@dataclass
class Asked:
    """One request."""

    body: dict
    min_version: int
    traceparent: str | None = None


@dataclass
class SimulatedEngine:
    """The instrument; used as a context manager it listens in a thread of its own."""

    seed: int = 0
    version: int = 1
    port: int = 0
    mean_s: float = 0.0
    """Mean time of an answer, exponentially distributed; 0 answers at once."""
    token_s: float = 0.0
    """Seconds a token: an answer takes that times the length of its longest sample."""
    sequence_s: float = 0.0
    """Seconds that each sequence which is computed at the same time adds to a token; needs ``slots``."""
    slots: int = 0
    """Sequences that are computed at once; 0 for any number."""
    mean_tokens: int = 8
    """Mean length of an answer, uniform from 1 to twice that."""
    sigma: float = 0.0
    """If not 0, lengths are log-normal with this standard deviation of their logarithm."""
    fixed_tokens: int = 0
    """Length of every answer, if not 0."""
    api_key: str = ""
    """What a request has to show, as a locked worker wants it; empty for nothing."""
    obliging: bool = False
    """Whether it takes up any version that a request asks for."""
    vocabulary: tuple[int, int] = (6, 16)
    """Tokens are drawn from this range; the default are the tiny model's digits."""
    slow_s: dict[int, float] = field(default_factory=dict)
    """Seconds for prompts that begin with this token."""
    faults: deque = field(default_factory=deque)
    """What goes wrong with the next requests, one each: error, refuse, garbage, hang, close, nan,
    short, no_versions, version_zero, unavailable, abort; of streams also break_off (the connection ends after
    half of the tokens), error_event, no_end (no last event); die (as vLLM's server whose engine died: it
    answers 500 to all and is not healthy until ``revive`` is called); exit (ends the process)."""
    always: dict[int, str] = field(default_factory=dict)
    """What goes wrong with every request whose prompt begins with this token."""
    answers: deque = field(default_factory=deque)
    """Token ids of the next streamed answers, one each; without any they are drawn."""
    requests: list = field(default_factory=list)
    """What it was asked, the newest last."""
    turned_away: int = 0
    """Requests that did not show the key."""
    aborted: int = 0
    """Streams whose reader left before their end."""
    most_at_once: int = 0

    def __post_init__(self):
        self._random = random.Random(self.seed)
        self._died = False
        self._sleeping = set()
        self._at_once = self._computing = 0
        self._free = None
        self._entries = [
            json.dumps({"token_id": token, "logprob": -self._random.random(), "rank": 1, "top_logprobs": []})
            for token in (*range(*self.vocabulary), END)
        ]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def application(self):
        application = web.Application(client_max_size=64 << 20)
        application.router.add_post("/inference/v1/generate", self._generate)
        application.router.add_get("/health", self._health)
        application.router.add_post("/simulated", self._set)
        return application

    @property
    def died(self):
        return self._died

    def die(self):
        self._loop.call_soon_threadsafe(self._end)

    def revive(self):
        """What a supervisor does to an engine that died."""
        self._loop.call_soon_threadsafe(self._revive)

    async def _health(self, request):
        return web.Response(status=503 if self.died else 200)

    async def _set(self, request):
        for name, number in (await request.json()).items():
            self.set(name, number)
        return web.Response()

    def set(self, name, number):
        """Sets one of the numbers by its name."""
        setattr(self, name, type(getattr(self, name))(float(number)))
        if name == "seed":
            self._random.seed(self.seed)

    async def _generate(self, request):
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            self.turned_away += 1
            return web.json_response({"error": {"message": "no key"}}, status=401)
        body = json.loads(await request.read())
        version = int(request.headers.get("X-AsyncFlow-Min-Version", 0))
        self._note(Asked(body, version, request.headers.get("traceparent")))
        fault = self.always.get(body["token_ids"][0]) or (self.faults.popleft() if self.faults else None)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if body.get("stream") and fault in (None, *_STREAM_FAULTS):
                return await self._stream(fault, request, body)
            return await self._misbehave(fault, request, body) if fault else await self._answer(body)
        finally:
            self._at_once -= 1

    def _note(self, asked):
        if self.obliging:
            self.version = max(self.version, asked.min_version)
        self.requests.append(asked)
        if len(self.requests) > 2 * _REMEMBERED:
            del self.requests[:-_REMEMBERED]

    def answers_all(self):
        """Whether it answers every request that is no stream, and wants no key."""
        return not (self.api_key or self.faults or self.always or self._died)

    async def reply(self, asked):
        """The body of the answer to a request, while it answers all."""
        self._note(asked)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._text(asked.body)
        finally:
            self._at_once -= 1

    async def _stream(self, fault, request, body):
        """One event a token; the last one has the versions of all."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        most = body["sampling_params"]["max_tokens"]
        tokens = self.answers.popleft()[:most] if self.answers else self._draw(self._length(most))
        spans = []
        try:
            await response.prepare(request)
            for place, token in enumerate(tokens):
                if fault and place >= len(tokens) / 2:
                    return await self._spoil_stream(fault, request, response)
                await asyncio.sleep(self.token_s)
                if not spans or spans[-1]["version"] != str(self.version):
                    spans.append({"version": str(self.version), "start": place})
                await self._send_event(response, token, place == len(tokens) - 1, spans, len(tokens))
            await response.write(b"data: [DONE]\n\n")
        except (ConnectionResetError, asyncio.CancelledError):
            self.aborted += 1
            raise
        return response

    async def _send_event(self, response, token, is_last, spans, tokens):
        ends = [*(span["start"] for span in spans[1:]), tokens]
        entry = {"token_id": token, "logprob": -self._random.random(), "rank": 1, "top_logprobs": []}
        choice = {
            "index": 0,
            "logprobs": {"content": [entry]},
            "finish_reason": ("stop" if token == END else "length") if is_last else None,
            "stop_reason": None,
            "token_ids": [token],
            "weight_versions": [{**span, "end": end} for span, end in zip(spans, ends, strict=True)]
            if is_last
            else None,
        }
        event = {"request_id": "simulated", "output_mode": "tokens", "choices": [choice], "usage": None}
        await response.write(f"data: {json.dumps(event)}\n\n".encode())

    async def _spoil_stream(self, fault, request, response):
        if fault == "break_off":
            request.transport.close()
        elif fault == "error_event":
            error = {"error": {"message": "Internal server error", "type": "InternalServerError", "code": 500}}
            await response.write(f"data: {json.dumps(error)}\n\ndata: [DONE]\n\n".encode())
        else:
            await response.write(b"data: [DONE]\n\n")
        return response

    def _draw(self, tokens):
        return [*self._random.choices(range(*self.vocabulary), k=tokens - 1), END]

    async def _answer(self, body):
        text = await self._text(body)
        if self.died:
            return self._broken("EngineDeadError")
        return web.Response(body=text, content_type="application/json")

    async def _text(self, body):
        lengths = [self._length(body["sampling_params"]["max_tokens"]) for _ in range(body["sampling_params"]["n"])]
        started_under = await self._compute(body, lengths)
        choices = ",".join([self._choice(index, tokens, started_under) for index, tokens in enumerate(lengths)])
        return f'{{"request_id": "simulated", "choices": [{choices}], "usage": null}}'.encode()

    async def _compute(self, body, lengths):
        """Takes the time; returns the version under which the first of the answers began."""
        started_under = self.version
        seconds = self.slow_s.get(body["token_ids"][0])
        if seconds is None:
            seconds = self._random.expovariate(1 / self.mean_s) if self.mean_s else 0.0
            if self.slots:
                return min(await asyncio.gather(*(self._sequence(seconds, tokens) for tokens in lengths)))
            seconds += max(lengths) * self.token_s
        if seconds:
            await self._sleep(seconds)
        return started_under

    async def _sleep(self, seconds):
        """Until the time is over or the engine dies; without a task of its own, of which there would be thousands."""
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        timer = loop.call_later(seconds, _wake, waiting)
        self._sleeping.add(waiting)
        try:
            await waiting
        finally:
            self._sleeping.discard(waiting)
            timer.cancel()

    def _end(self):
        self._died = True
        for waiting in self._sleeping:
            _wake(waiting)

    def _revive(self):
        self._died = False

    async def _sequence(self, seconds, tokens):
        if self._free is None:
            self._free = asyncio.Semaphore(self.slots)
        async with self._free:
            started_under = self.version
            if not self.sequence_s:
                await asyncio.sleep(seconds + tokens * self.token_s)
                return started_under
            await asyncio.sleep(seconds)
            self._computing += 1
            try:
                for _ in range(_PIECES):  # others begin and end meanwhile
                    await asyncio.sleep(tokens / _PIECES * (self.token_s + self._computing * self.sequence_s))
            finally:
                self._computing -= 1
            return started_under

    def _length(self, most):
        if self.fixed_tokens:
            return min(self.fixed_tokens, most)
        if self.sigma:
            mu = math.log(self.mean_tokens) - self.sigma**2 / 2
            return min(max(1, round(self._random.lognormvariate(mu, self.sigma))), most)
        return min(self._random.randint(1, 2 * self.mean_tokens), most)

    def _choice(self, index, tokens, started_under):
        """As JSON text: put together from pieces, so that the instrument is faster than what it measures."""
        first, beyond = self.vocabulary
        drawn = [*self._random.choices(range(beyond - first), k=tokens - 1), beyond - first]
        ids = [*(first + number for number in drawn[:-1]), END]
        half = tokens // 2
        spans = [{"version": str(started_under), "start": 0, "end": tokens}]
        if started_under != self.version and half:
            spans = [
                {"version": str(started_under), "start": 0, "end": half},
                {"version": str(self.version), "start": half, "end": tokens},
            ]
        content = ",".join([self._entries[number] for number in drawn])
        return (
            f'{{"index": {index}, "logprobs": {{"content": [{content}]}}, "finish_reason": "stop", '
            f'"stop_reason": null, "token_ids": {ids}, "weight_versions": {json.dumps(spans)}}}'
        )

    @staticmethod
    def _broken(message):
        return web.json_response({"error": {"message": message, "code": 500}}, status=500)

    async def _misbehave(self, fault, request, body):
        if fault == "exit":
            os._exit(1)
        if fault == "die":
            await asyncio.sleep(self.slow_s.get(body["token_ids"][0], 0))
            self._end()
            return self._broken("EngineDeadError")
        if fault == "error":
            return self._broken("engine is broken")
        if fault == "refuse":
            return web.json_response({"error": {"message": "max_tokens is too large", "code": 400}}, status=400)
        if fault == "unavailable":
            return web.json_response({"error": {"message": "no weights yet", "code": 503}}, status=503)
        if fault == "garbage":
            return web.Response(body=b"\x00\xff<html>", content_type="application/json")
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "close":
            request.transport.close()
            return web.Response()
        lengths = [self._length(body["sampling_params"]["max_tokens"]) for _ in range(body["sampling_params"]["n"])]
        choices = [json.loads(self._choice(index, tokens, self.version)) for index, tokens in enumerate(lengths)]
        self._spoil(fault, choices[-1])
        return web.json_response({"request_id": "simulated", "choices": choices})

    def _spoil(self, fault, choice):
        if fault == "nan":
            choice["logprobs"]["content"][0]["logprob"] = float("nan")
        elif fault == "short":
            choice["logprobs"]["content"].append(choice["logprobs"]["content"][0])
        elif fault == "no_versions":
            choice["weight_versions"] = None
        elif fault == "version_zero":
            choice["weight_versions"] = [{"version": "0", "start": 0, "end": 1}]
        elif fault == "unknown_version":
            choice["weight_versions"] = [{"version": "default", "start": 0, "end": 1}]
        elif fault == "abort":
            choice["finish_reason"] = "abort"
        else:
            raise ValueError(f"unknown fault {fault!r}")

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="simulated-engine", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    async def _listen(self):
        self._runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def _wake(waiting):
    if not waiting.done():
        waiting.set_result(None)


def main():
    parser = argparse.ArgumentParser(description="vLLM's HTTP interface without a model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--set", action="append", default=["fixed_tokens=64"], metavar="NAME=NUMBER")
    parser.add_argument("--exit-on", type=int)
    given = parser.parse_args()
    always = {} if given.exit_on is None else {given.exit_on: "exit"}
    engine = SimulatedEngine(always=always)
    for setting in given.set:
        engine.set(*setting.split("="))
    uvloop.run(_serve(engine, given.port))


async def _serve(engine, port):
    runner = web.AppRunner(engine.application(), access_log=None)
    await runner.setup()
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: _Connection(engine, runner.server), "127.0.0.1", port, backlog=_BACKLOG)
    await asyncio.Event().wait()


class _Connection(asyncio.Protocol):
    """Answers plain requests for tokens by itself; from anything else on the connection is aiohttp's.

    What a load is made of passes here, at a third of the cost: the instrument shares the cores of what it measures.
    """

    def __init__(self, engine, server):
        self._engine, self._server, self._received = engine, server, b""

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        headers = _headers_of(head)
        if not head.startswith(_PLAIN) or not self._engine.answers_all() or b"content-length" not in headers:
            self._hand_over()
        elif len(body) >= int(headers[b"content-length"]):
            self._take(headers, msgspec.json.decode(body))

    def _take(self, headers, body):
        if body.get("stream"):
            self._hand_over()
            return
        self._received = b""
        version, trace = int(headers.get(b"x-asyncflow-min-version", 0)), headers.get(b"traceparent")
        asked = Asked(body, version, trace and trace.decode())
        self._replying = asyncio.ensure_future(self._reply(asked))

    async def _reply(self, asked):
        text = await self._engine.reply(asked)
        self._transport.write(_HEAD % len(text) + text)

    def _hand_over(self):
        handler = self._server()
        self._transport.set_protocol(handler)
        handler.connection_made(self._transport)
        handler.data_received(self._received)


def _headers_of(head):
    """By their names in small letters."""
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.lower(): value.strip() for name, _, value in lines}


if __name__ == "__main__":
    main()
