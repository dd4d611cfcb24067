"""One question from its exchange record to its row.

    Exchange ─► tokens ─► {run}.exchanges ─acknowledged─► rollout id
                              └─► a worker, streamed ─► text, text, … ─► Sample ─► {run}.pending ─acknowledged─► end

The answer goes on at the speed of the engine, however slowly its reader takes it; who stops reading before the end
stops the engine, and there is no row. So there is none if a worker is lost in the middle: what was shown was not
whole. An engine that fails before the first token is replaced by another one.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
import structlog

from pipelines.gateway import metrics
from pipelines.gateway.appender import Appender
from schemas import traces
from schemas.config import RunConfig
from schemas.errors import EngineError, EngineLost, EngineRefusal, EngineUnavailable, RecordError
from schemas.exchanges import Exchange
from schemas.identity import EXCHANGES, RolloutId
from schemas.prompts import FEEDBACK_REWARD, Prompt, RewardSpec
from schemas.trace_context import TraceContext
from schemas.trajectories import Sample, encode, new_attempt_id
from transforms.generation import engine
from transforms.generation.request import PromptRecord, Request, sampling_params
from transforms.generation.streaming import generate_streamed
from transforms.generation.text import TextStream
from transforms.generation.tokenizer import Tokenizer
from transforms.generation.workers import Worker, Workers

_LOG = structlog.get_logger(__name__)
_WORKER_WAIT_S: Final = 10.0
"""How long a question waits for a worker that is up."""
_PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that Kafka has."""

    rollout: RolloutId
    request: Request


Produce = Callable[[Asked, Callable[[str], None]], Coroutine[Any, Any, Sample]]
"""From a question and who is shown text as it comes, to the row."""


class Answer:
    """The answer to one question, which is being generated.

    Attributes:
        rollout: its name.
    """

    def __init__(self, asked: Asked, produce: Produce) -> None:
        self.rollout = asked.rollout
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._producing = asyncio.create_task(produce(asked, self._pieces.put_nowait))
        self._producing.add_done_callback(self._ended)

    def on_end(self, then: Callable[[], None]) -> None:
        """Has something done when it is over, however it ends."""
        self._producing.add_done_callback(lambda _: then())

    def _ended(self, producing: asyncio.Task[Sample]) -> None:
        self._pieces.put_nowait(None)
        if not producing.cancelled():
            producing.exception()  # has been seen, even if the reader is gone

    async def pieces(self) -> AsyncIterator[str]:
        """Its text as it comes.

        Raises:
            EngineError, EngineRefusal: there is no answer, or it broke off.
            BrokerError: Kafka did not acknowledge its row.
        """
        while (piece := await self._pieces.get()) is not None:
            if piece:
                yield piece
        await self._producing

    async def sample(self) -> Sample:
        """Its row, once Kafka has acknowledged it; raises as :meth:`pieces`."""
        return await self._producing

    def stop(self) -> None:
        """Nobody reads it any more: unless it is over, its engine stops, and there is no row."""
        self._producing.cancel()


class Desk:
    """Has questions answered. Lives in one event loop.

    Args:
        config: of the run.
        tokenizer: of its model.
        appender: to its topics.
        session: through which workers are asked.
        workers: who they are.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Tokenizer,
        appender: Appender,
        session: aiohttp.ClientSession,
        workers: Workers,
    ) -> None:
        self._config, self._tokenizer, self._appender = config, tokenizer, appender
        self._session, self._workers = session, workers
        self._in_flight = 0

    async def ask(self, exchange: Exchange, traceparent: str | None = None) -> Answer:
        """Records a question and has it answered.

        Args:
            exchange: the question.
            traceparent: of the request that brought it, if it had one.

        Raises:
            RecordError: the model cannot take it.
            EngineUnavailable: no worker is up, or as many answers are being generated as may be.
            BrokerError: Kafka did not acknowledge it.
        """
        self._check_room()
        self._count(1)
        try:
            answer = Answer(await self._record(exchange, traceparent), self._produce)
        except BaseException:
            self._count(-1)
            raise
        answer.on_end(lambda: self._count(-1))
        return answer

    async def _record(self, exchange: Exchange, traceparent: str | None) -> Asked:
        prompt = Prompt(
            task=exchange.task, messages=exchange.messages, reward=RewardSpec(name=FEEDBACK_REWARD), group_size=1
        )
        token_ids = await asyncio.to_thread(self._tokenizer.encode, prompt)
        room_tokens = self._config.worker.max_model_len_tokens - len(token_ids)
        if room_tokens < 1:
            raise RecordError(
                "too_long", f"{len(token_ids)} tokens, the model takes {len(token_ids) + room_tokens - 1}"
            )
        value = exchange.encode()
        place = await self._appender.append(self._config.topics.exchanges, value)
        rollout = RolloutId(self._config.name, EXCHANGES + place.partition, place.offset, 0)
        trace = traces.begin(f"{rollout}@{place.written_at.isoformat()}", traceparent, "http")
        record = PromptRecord(rollout.group, value, place.written_at, trace=trace)
        sampling = sampling_params(exchange.sampling, self._config.rollout)
        parameters = {"n": 1, "logprobs": 0, "detokenize": bool(sampling.get("stop")), **sampling}
        return Asked(rollout, Request(record, prompt, token_ids, 1, parameters).within(room_tokens))

    def _check_room(self) -> None:
        if self._in_flight >= self._config.gateway.max_in_flight:
            raise EngineUnavailable(f"{self._in_flight} answers are being generated, as many as may be; try again soon")
        if not self._workers.some_up:
            raise EngineUnavailable("no worker is up; try again soon")

    async def _produce(self, asked: Asked, show: Callable[[str], None]) -> Sample:
        started = time.monotonic()
        end = "abandoned"
        try:
            sample = await self._generate(asked, _Shown(self._tokenizer, asked.request, show, started))
            await self._write(sample, asked.request.record.trace)
            end = "done"
            metrics.ANSWER_SECONDS.observe(time.monotonic() - started)
            return sample
        except Exception as error:
            end = "refused" if isinstance(error, EngineRefusal) else "broken_off"
            _LOG.warning("no_answer", rollout=str(asked.rollout), end=end, error=str(error)[:300])
            raise
        finally:
            metrics.ANSWERS.labels(end).inc()
            _trace(asked, end)

    def _count(self, change: int) -> None:
        self._in_flight += change
        metrics.ANSWERS_IN_FLIGHT.set(self._in_flight)

    async def _write(self, sample: Sample, trace: TraceContext | None) -> None:
        value, headers = encode([sample], traces={sample.group: trace} if trace else None)
        await self._appender.append(self._config.topics.pending, value, sample.group.key(), headers)

    async def _generate(self, asked: Asked, shown: "_Shown") -> Sample:
        """Attempts at one worker after the other, until something was shown."""
        avoid: set[str] = set()
        failed, until_s = 0, time.monotonic() + _WORKER_WAIT_S
        while True:
            async with self._taken(asked.request, avoid) as worker:
                deaths = worker.deaths
                try:
                    return await self._attempt(asked, worker, shown)
                except EngineError as error:
                    await self._leave_out(worker, deaths, error)
                    failed += not isinstance(error, EngineUnavailable)
                    out_of_time = time.monotonic() > until_s
                    if shown.tokens or failed >= self._config.rollout.attempts or out_of_time:
                        raise
                avoid.add(worker.url)
            await asyncio.sleep(_PAUSE_S)

    @asynccontextmanager
    async def _taken(self, request: Request, avoid: set[str]) -> AsyncIterator[Worker]:
        scope = asyncio.timeout(_WORKER_WAIT_S)
        try:
            async with scope, self._workers.taken(request.token_ids, 1, avoid) as worker:
                scope.reschedule(None)
                yield worker
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise EngineUnavailable(f"no worker was up within {_WORKER_WAIT_S:g} s; try again soon") from error

    async def _leave_out(self, worker: Worker, deaths: int, error: EngineError) -> None:
        if isinstance(error, EngineUnavailable):
            self._workers.leave_out(worker, str(error))
        elif isinstance(error, EngineLost):
            await self._workers.has_died(worker, deaths, str(error))

    async def _attempt(self, asked: Asked, worker: Worker, shown: "_Shown") -> Sample:
        completion = await self._complete(asked.request, worker, shown)
        shown.finish()
        (text,) = self._tokenizer.decode([completion.token_ids])
        attempt = engine.Attempt(new_attempt_id(), worker.url, datetime.now(UTC))
        (sample,) = engine.build_samples(self._config.name, asked.request, attempt, [completion], [text])
        return replace(sample, purpose="feedback")

    async def _complete(self, request: Request, worker: Worker, shown: "_Shown") -> engine.Completion:
        sizes = {"samples": 1, "prompt_tokens": len(request.token_ids)}
        with traces.spanning(traces.below(request.record.trace), "engine", worker=worker.url, **sizes) as span:
            vocabulary_tokens = self._tokenizer.vocabulary_tokens
            traced = request.below(span.context)
            asking = generate_streamed(self._session, worker.url, traced, vocabulary_tokens, shown.add)
            completion = await worker.guard(asking)
            span.attributes["response_tokens"] = len(completion.token_ids)
        return completion


def _trace(asked: Asked, end: str) -> None:
    record = asked.request.record
    now_s = time.time()
    facts = {"group": str(record.id), "task": asked.request.prompt.task}
    fault = None if end == "done" else end
    began_s = min(record.written_at.timestamp(), now_s)
    traces.record(traces.Span(record.trace, "exchange", began_s, now_s, facts, fault=fault))


class _Shown:
    """What was shown of an answer so far."""

    def __init__(self, tokenizer: Tokenizer, request: Request, show: Callable[[str], None], started_s: float) -> None:
        stops = request.sampling_params.get("stop") or ()
        self._text = TextStream(lambda token_ids: tokenizer.decode([token_ids])[0], stops)
        self._show, self._started_s = show, started_s
        self.tokens = 0

    def add(self, token_ids: Sequence[int]) -> None:
        """More tokens came."""
        if not self.tokens:
            metrics.FIRST_TOKEN_SECONDS.observe(time.monotonic() - self._started_s)
        self.tokens += len(token_ids)
        self._show(self._text.feed(token_ids))

    def finish(self) -> None:
        """No more come."""
        self._show(self._text.finish())
