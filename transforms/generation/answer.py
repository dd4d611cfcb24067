"""One prompt from its bytes to its outcome: checked, asked for until it is answered, or given up."""

import asyncio
import random
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import aiohttp
import structlog

from schemas import traces
from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import EngineError, EngineLost, EngineRefusal, EngineUnavailable, RecordError
from schemas.trajectories import Group, Sample, new_attempt_id
from transforms import metrics
from transforms.generation import engine
from transforms.generation.episode import Episodes, Turn
from transforms.generation.outcome import Outcome
from transforms.generation.quarantine import Case
from transforms.generation.request import PromptRecord, Request, prepare
from transforms.generation.tokenizer import Tokenizer
from transforms.generation.workers import Worker, Workers
from transforms.rewards import asked

_LOG = structlog.get_logger(__name__)
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_LONG_PROMPT_BYTES: Final = 20_000
"""About a millisecond's work of a tokenizer."""


class Answerer:
    """Turns prompts into outcomes. Lives in one event loop."""

    def __init__(
        self, config: RunConfig, tokenizer: Tokenizer, session: aiohttp.ClientSession, workers: Workers
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._session = session
        self._workers = workers
        self._quarantine = workers.quarantine
        self._episodes = Episodes(config, tokenizer)

    async def close(self) -> None:
        """Ends the processes of environments."""
        await self._episodes.close()

    async def answer(self, record: PromptRecord, min_version: int) -> Outcome:
        """A group, or a dead letter of stage ``generate``.

        Raises:
            AbandonedError: the pipeline ends first.
        """
        if record.trace is None:
            return await self._answer(record, min_version)
        with traces.spanning(traces.below(record.trace), "generate") as span:
            outcome = await self._answer(replace(record, trace=span.context), min_version)
            if isinstance(outcome, DeadLetter):
                span.fault = outcome.reason
                return outcome
        return replace(outcome, trace=record.trace)

    async def _answer(self, record: PromptRecord, min_version: int) -> Outcome:
        started = time.monotonic()
        try:
            request = await self._prepare(record, min_version)
            group = Group(record.id, request.prompt, await self._samples(request), record.value or b"")
        except RecordError as error:
            return self._dead(record, error.reason, error.detail)
        except EngineRefusal as error:
            return self._dead(record, "engine_refused", str(error))
        except EngineLost as error:
            return self._dead(record, "engine_killed", f"two engines died while answering; {error}")
        except EngineError as error:
            return self._dead(record, "engine_failed", f"{self._config.rollout.attempts} attempts failed; {error}")
        metrics.GENERATION_SECONDS.observe(time.monotonic() - started)
        metrics.GROUPS_FINISHED.inc()
        metrics.RESPONSE_TOKENS.inc(sum(sum(sample.loss_mask) for sample in group.samples))
        return group

    async def _prepare(self, record: PromptRecord, min_version: int) -> Request:
        """In a thread only if it takes long enough to be noticed by other answers: a thread costs more than that."""
        arguments = (record, self._config.rollout, self._tokenizer, min_version)
        if len(record.value or b"") < _LONG_PROMPT_BYTES:
            request = prepare(*arguments)
        else:
            request = await asyncio.to_thread(prepare, *arguments)
        if request.prompt.function:
            asked.check(self._config.rewards, request.prompt.function)
        return request

    def _dead(self, record: PromptRecord, reason: str, detail: str) -> DeadLetter:
        _LOG.warning("prompt_dead", prompt=str(record.id), reason=reason, detail=detail[:300])
        source = (self._config.topics.prompts, *record.id)
        return DeadLetter.of("generate", reason, detail, source, record.value or b"")

    async def _samples(self, request: Request) -> tuple[Sample, ...]:
        if request.prompt.environment is None:
            return (await self._ask(request)).samples
        return await self._episodes.play(request, request.prompt.environment, self._ask)

    async def _ask(self, request: Request, prefer: str | None = None) -> Turn:
        """Attempts until one succeeds; those that no engine took up, or under which one died, do not count.

        Args:
            request: one turn.
            prefer: the worker that answered the turn before, by url.

        Raises:
            EngineLost: the prompt kills engines.
            EngineError: as many attempts as are allowed failed.
        """
        case, avoid, failed, pause_s = Case(), set[str](), 0, _FIRST_PAUSE_S
        while True:
            async with (
                self._quarantine.turn(case),
                self._workers.taken(request.token_ids, request.group_size, avoid, prefer, case) as worker,
            ):
                deaths = worker.deaths
                with self._quarantine.running(case):
                    result = await self._attempt(request, worker)
                if isinstance(result, Turn):
                    return result
                failed += await self._weigh(result, worker, deaths, case)
            if not isinstance(result, EngineUnavailable):
                avoid.add(worker.url)
            if failed >= self._config.rollout.attempts:
                raise EngineError(str(result)) from result
            metrics.RETRIES.inc()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _weigh(self, error: EngineError, worker: Worker, deaths: int, case: Case) -> bool:
        """Whether the attempt counts as failed. The worker had died ``deaths`` times when it began.

        Raises:
            EngineLost: the worker died of the prompt.
        """
        if isinstance(error, EngineUnavailable):
            self._workers.leave_out(worker, str(error))
            return False
        if not isinstance(error, EngineLost) or not await self._workers.has_died(worker, deaths, str(error)):
            return True
        if self._quarantine.convicts(case):
            raise EngineLost(str(error)) from error
        return False

    async def _attempt(self, request: Request, worker: Worker) -> Turn | EngineError:
        """One request; what went wrong is returned, a refusal is raised."""
        try:
            return await self._generate(request, worker)
        except EngineRefusal:
            metrics.ENGINE_ERRORS.labels("EngineRefusal").inc()
            raise
        except EngineError as error:
            fault = error
        except Exception as error:  # noqa: BLE001 - the engine call is a seam: an answer may break anything
            fault = EngineError(f"{worker.url}: {error!r}")
        metrics.ENGINE_ERRORS.labels(type(fault).__name__).inc()
        _LOG.warning("engine_error", prompt=str(request.record.id), kind=type(fault).__name__, error=str(fault)[:300])
        return fault

    async def _generate(self, request: Request, worker: Worker) -> Turn:
        started = time.monotonic()
        completions = await self._complete(request, worker)
        texts = self._tokenizer.decode([completion.token_ids for completion in completions])
        attempt = engine.Attempt(new_attempt_id(), worker.url, datetime.now(UTC))
        samples = engine.build_samples(self._config.name, request, attempt, completions, texts)
        return Turn(samples, time.monotonic() - started)

    async def _complete(self, request: Request, worker: Worker) -> list[engine.Completion]:
        sizes = {"samples": request.group_size, "prompt_tokens": len(request.token_ids)}
        with traces.spanning(traces.below(request.record.trace), "engine", worker=worker.url, **sizes) as span:
            traced = request.below(span.context)
            asked = engine.generate(self._session, worker.url, traced, self._tokenizer.vocabulary_tokens)
            completions = await worker.guard(asked)
            span.attributes["response_tokens"] = sum(len(each.token_ids) for each in completions)
        return completions
