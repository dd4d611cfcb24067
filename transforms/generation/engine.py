"""The client of one engine: vLLM's token-in token-out route, and its answer as samples.

    Request ──POST /inference/v1/generate──► choices ──checked──► Completion (n) ──► Sample (n)

The engine call is a seam: whatever comes back is distrusted. What is malformed is an EngineError,
so that the group is asked for again, and never becomes a row.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Final, Literal

import aiohttp
import msgspec

from schemas import crash_points
from schemas.errors import EngineError, EngineLost, EngineRefusal, EngineUnavailable
from schemas.secrets import without_secrets
from schemas.trace_context import HEADER
from schemas.trajectories import Sample, Span, find_fault
from transforms.generation.request import Request
from transforms.statuses import REFUSALS, UNAVAILABLE

ROUTE: Final = "/inference/v1/generate"
MIN_VERSION_HEADER: Final = "X-AsyncFlow-Min-Version"
_CONNECT_TIMEOUT_S: Final = 5.0
_EXCERPT_CHARACTERS: Final = 500
_READ_BYTES: Final = 16 << 10
"""Of a body that is no JSON: what is cut off here is not shown, though half a key were in it."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One of the n answers to a request. T is its number of tokens."""

    token_ids: tuple[int, ...]
    """Length T."""
    logprobs: tuple[float, ...]
    """Length T."""
    spans: tuple[Span, ...]
    """Which weight version produced which tokens; neighbours differ."""
    finish_reason: str


def open_session(request_timeout_s: float, key: str | None = None) -> aiohttp.ClientSession:
    """Connections to engines, as many as there are requests; to be opened on the event loop that uses it.

    Args:
        request_timeout_s: of a whole request.
        key: what they want to see; null for nothing.
    """
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"} if key else None,
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=request_timeout_s, sock_connect=_CONNECT_TIMEOUT_S),
        trust_env=False,
        trace_configs=_request_traces(),
    )


def _request_traces() -> list[aiohttp.TraceConfig]:
    """Knows when a request's body is on its way, where a crash point asks for it."""
    if not crash_points.are_on():
        return []
    trace = aiohttp.TraceConfig()

    async def sent(*_: object) -> None:
        crash_points.crash_point("request_sent")

    trace.on_request_chunk_sent.append(sent)
    return [trace]


async def generate(
    session: aiohttp.ClientSession, url: str, request: Request, vocabulary_tokens: int
) -> list[Completion]:
    """Asks the engine at ``url`` for a group.

    Raises:
        EngineRefusal: it understood the request and refused it.
        EngineUnavailable: it did not take the request.
        EngineLost: it went away while answering, or answered that it is broken: vLLM's server does so
            while it ends because its engine died. Only its health tells.
        EngineError: it took too long, or answered something else than a group.
    """
    headers = headers_of(request)
    with faults_told(url):
        async with session.post(
            url + ROUTE, data=msgspec.json.encode(request.body()), headers=headers, allow_redirects=False
        ) as response:
            body = await response.read()
            status = response.status
    raise_for_status(url, status, body)
    return read_completions(url, body, request.group_size, vocabulary_tokens)


def headers_of(request: Request) -> dict[str, str]:
    """The HTTP headers of a request to an engine."""
    headers = {"Content-Type": "application/json"}
    if request.min_version:
        headers[MIN_VERSION_HEADER] = str(request.min_version)
    if request.record.trace:
        headers[HEADER] = request.record.trace.header()
    return headers


@contextmanager
def faults_told(url: str) -> Iterator[None]:
    """What goes wrong on the way to the engine at ``url`` and back becomes an EngineError."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise EngineUnavailable(f"{url}: {error}") from error
    except (aiohttp.ServerTimeoutError, TimeoutError) as error:
        raise EngineError(f"{url}: no answer in time") from error
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, aiohttp.ClientOSError) as error:
        raise EngineLost(f"{url}: {excerpt(repr(error))}") from None
    except aiohttp.ClientResponseError as error:  # it shows the request's headers, and the workers' key there
        said = " ".join(without_secrets(error.message).split())
        raise EngineError(f"{url}: {type(error).__name__}: {error.status} {said}") from None
    except aiohttp.ClientError as error:
        raise EngineError(f"{url}: {excerpt(repr(error))}") from None


def raise_for_status(url: str, status: int, body: bytes) -> None:
    """Raises what a status other than 200 means; ``body`` says why."""
    if status == HTTPStatus.OK:
        return
    message = f"{url}: {status} {_read_message(body)}"
    if status in REFUSALS:
        raise EngineRefusal(message)
    if status in UNAVAILABLE:
        raise EngineUnavailable(message)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise EngineLost(message)
    raise EngineError(message)


def _read_message(body: bytes) -> str:
    try:
        return excerpt(str(json.loads(body)["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return excerpt(body[:_READ_BYTES].decode(errors="replace"))


def excerpt(text: str) -> str:
    """Of what a server says, for logs and dead letters."""
    return without_secrets(text)[:_EXCERPT_CHARACTERS]


class Entry(msgspec.Struct):
    """The logprob of one token."""

    logprob: float
    token_id: int | None = None


class Logprobs(msgspec.Struct):
    """Those of the tokens beside them."""

    content: list[Entry]


class Version(msgspec.Struct):
    """From which token on a weight version answered."""

    version: str
    start: int


class Choice(msgspec.Struct):
    """One of the n answers, as vLLM sends it."""

    index: int
    token_ids: list[int]
    logprobs: Logprobs
    finish_reason: Literal["stop", "length"]
    weight_versions: list[Version]


class _Answer(msgspec.Struct):
    choices: list[Choice]


_ANSWER: Final = msgspec.json.Decoder(_Answer)
"""Reads of vLLM's answer what is needed, and nothing else: parsing is most of what a group costs here."""


def read_completions(url: str, body: bytes, group_size: int, vocabulary_tokens: int) -> list[Completion]:
    """The ``group_size`` completions of an answer, by index.

    Raises:
        EngineError: the answer has another form.
    """
    try:
        choices = sorted(_ANSWER.decode(body).choices, key=lambda choice: choice.index)
        if [choice.index for choice in choices] != list(range(group_size)):
            raise EngineError(f"{url}: {len(choices)} choices, expected {group_size}")
        return [read_choice(choice, vocabulary_tokens) for choice in choices]
    except (ValueError, RecursionError) as error:
        begins = excerpt(body[:_READ_BYTES].decode(errors="backslashreplace"))[:100]
        raise EngineError(f"{url}: the answer is not one of vLLM's: {excerpt(repr(error))}, {begins!r}") from None


def read_choice(choice: Choice, vocabulary_tokens: int) -> Completion:
    """Checks an answer.

    Raises:
        ValueError: a token is outside the vocabulary, a logprob or a version is not one.
    """
    token_ids, content = choice.token_ids, choice.logprobs.content
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocabulary_tokens:
        raise ValueError(f"token_ids outside the vocabulary of {vocabulary_tokens}")
    named = [entry.token_id for entry in content]
    if named != token_ids and named != [None] * len(token_ids):
        raise ValueError("logprobs are not those of token_ids")
    return Completion(
        token_ids=tuple(token_ids),
        logprobs=tuple([entry.logprob for entry in content]),
        spans=read_spans((given.version, given.start) for given in choice.weight_versions),
        finish_reason=choice.finish_reason,
    )


def read_spans(weight_versions: Iterable[tuple[str, int]]) -> tuple[Span, ...]:
    """Spans from vLLM's versions and where each starts; neighbours of one version become one.

    Raises:
        ValueError: a version that is not a number above 0: those were never announced.
    """
    spans: list[Span] = []
    for given, start in weight_versions:
        version = int(given)
        if version < 1:
            raise ValueError(f"weight version {given!r}, expected 1 or more")
        if not spans or spans[-1].version != version:
            spans.append(Span(version, start))
    return tuple(spans)


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which attempt on which worker gave the completions, and when."""

    id: str
    worker: str
    generated_at: datetime


def build_samples(
    run: str, request: Request, attempt: Attempt, completions: Sequence[Completion], texts: Sequence[str]
) -> tuple[Sample, ...]:
    """The rows of a group.

    Raises:
        EngineError: a value is outside its domain.
    """
    answers = enumerate(zip(completions, texts, strict=True))
    samples = tuple(_build_sample(run, request, attempt, index, answer) for index, answer in answers)
    for sample in samples:
        fault = find_fault(sample)
        if fault:
            raise EngineError(f"{attempt.worker}: sample {sample.sample_index}: {fault}")
    return samples


def _build_sample(run: str, request: Request, attempt: Attempt, index: int, answer: tuple[Completion, str]) -> Sample:
    completion, text = answer
    versions = [span.version for span in completion.spans]
    return Sample(
        run=run,
        prompt_partition=request.record.id.partition,
        prompt_offset=request.record.id.offset,
        sample_index=index,
        attempt_id=attempt.id,
        prompt_id=request.prompt.prompt_id,
        task=request.prompt.task,
        purpose=request.prompt.purpose,
        prompt_token_ids=request.token_ids,
        response_token_ids=completion.token_ids,
        response_logprobs=completion.logprobs,
        loss_mask=(True,) * len(completion.token_ids),
        weight_version_spans=completion.spans,
        weight_version_min=min(versions, default=0),
        weight_version_max=max(versions, default=0),
        reward=None,
        reward_parts={},
        reward_error=None,
        finish_reason=completion.finish_reason,
        worker=attempt.worker,
        prompt_at=request.record.written_at,
        generated_at=attempt.generated_at,
        response_text=text,
    )
