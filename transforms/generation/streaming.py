"""The client of one engine, token by token: vLLM's token route with ``stream``.

    Request ──POST /inference/v1/generate──► event, event, … ──► on_tokens(ids)
                                                 └──all of them, checked──► Completion

Each event carries the tokens that were drawn since the last one, with their logprobs; the last one carries why the
answer ended and the weight versions of all its tokens. An answer without that last event is no answer: it is shown
to people, and never becomes a row.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from http import HTTPStatus
from typing import Final, Literal

import aiohttp
import msgspec

from schemas.errors import EngineError, EngineLost
from transforms.generation.engine import (
    ROUTE,
    Choice,
    Completion,
    Entry,
    Logprobs,
    Version,
    excerpt,
    faults_told,
    headers_of,
    raise_for_status,
    read_choice,
)  # fmt: skip
from transforms.generation.request import Request

_PREFIX: Final = b"data: "
_DONE: Final = b"[DONE]"
_BEFORE_ROLLOUTS: Final = -1
"""Of the engine's priorities; rollouts have 0, and lower ones go first: a person waits, a rollout does not."""

OnTokens = Callable[[Sequence[int]], None]


class _Choice(msgspec.Struct):
    index: int
    token_ids: list[int] | None = None
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    weight_versions: list[Version] | None = None


class _Fault(msgspec.Struct):
    message: str = ""
    code: int | str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Fault | None = None


_EVENT: Final = msgspec.json.Decoder(_Event)


async def generate_streamed(
    session: aiohttp.ClientSession, url: str, request: Request, vocabulary_tokens: int, on_tokens: OnTokens
) -> Completion:
    """Asks the engine at ``url`` for one answer and tells its tokens as they come.

    Args:
        session: through which it is asked.
        url: of the engine.
        request: for a group of one.
        vocabulary_tokens: ids are below this.
        on_tokens: called with the token ids since the last call, 1 or more.

    Raises:
        EngineRefusal: it understood the request and refused it.
        EngineUnavailable: it did not take the request.
        EngineLost: it went away while answering, or said that it is broken.
        EngineError: it took too long, or what it sent is no answer.
    """
    body = {**request.body(), "stream": True, "priority": _BEFORE_ROLLOUTS}
    with faults_told(url):
        async with session.post(
            url + ROUTE, data=msgspec.json.encode(body), headers=headers_of(request), allow_redirects=False
        ) as response:
            if response.status != HTTPStatus.OK:
                raise_for_status(url, response.status, await response.read())
            try:
                return await _collect(url, _events(response), vocabulary_tokens, on_tokens)
            except (ValueError, RecursionError) as error:
                raise EngineError(f"{url}: the answer is not one of vLLM's: {excerpt(repr(error))}") from None


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[_Event]:
    async for line in response.content:
        if line.startswith(_PREFIX):
            data = line[len(_PREFIX) :].strip()
            if data == _DONE:
                return
            yield _EVENT.decode(data)


async def _collect(url: str, events: AsyncIterator[_Event], vocabulary_tokens: int, on_tokens: OnTokens) -> Completion:
    token_ids: list[int] = []
    entries: list[Entry] = []
    async for event in events:
        if event.error is not None:
            raise _fault(url, event.error)
        for choice in event.choices:
            fresh = _read_tokens(choice, vocabulary_tokens)
            token_ids += fresh
            entries += choice.logprobs.content if choice.logprobs else []
            if fresh:
                on_tokens(fresh)
            if choice.finish_reason is not None:
                whole = Choice(0, token_ids, Logprobs(entries), choice.finish_reason, choice.weight_versions or [])
                return read_choice(whole, vocabulary_tokens)
    raise EngineLost(f"{url}: the answer broke off after {len(token_ids)} tokens")


def _read_tokens(choice: _Choice, vocabulary_tokens: int) -> list[int]:
    """Checked before they are shown: a tokenizer knows no others."""
    token_ids = choice.token_ids or []
    if choice.index != 0:
        raise ValueError(f"choice {choice.index} of a group of one")
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocabulary_tokens:
        raise ValueError(f"token_ids outside the vocabulary of {vocabulary_tokens}")
    return token_ids


def _fault(url: str, fault: _Fault) -> EngineError:
    message = f"{url}: {fault.code} {excerpt(fault.message)}"
    broken = not isinstance(fault.code, int) or fault.code >= HTTPStatus.INTERNAL_SERVER_ERROR
    return EngineLost(message) if broken else EngineError(message)
