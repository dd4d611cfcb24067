"""Prompts with an environment: each sample is a conversation of several turns, and one row in the end.

    Request ──ask──► n first answers ──► n Conversations, from here on each by itself:

        answer ──► environment ──► messages ──chat template──► token ids ──ask (n = 1)──► answer ──► …
                       └── done, or a limit is reached ──► Sample

Token in, token out: every request holds the ids of everything said so far, as the engine and the
tokenizer gave them, and nothing that came from an engine is tokenised again. What the environment says
is masked out of the loss. The environment call is a seam: what goes wrong there costs the sample its
reward, and nothing else.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import structlog

from schemas import traces
from schemas.config import RunConfig
from schemas.errors import EnvironmentFault, RecordError
from schemas.prompts import EnvironmentSpec, Message
from schemas.trajectories import Sample, Span
from transforms import metrics
from transforms.environments.processes import EnvironmentProcesses, Instance
from transforms.environments.registry import Answer, Step
from transforms.generation.request import Request
from transforms.generation.tokenizer import Tokenizer
from transforms.rewards.registry import Reward
from transforms.rewards.scoring import SampleScore, failed, to_score

_LOG = structlog.get_logger(__name__)


class Turn(NamedTuple):
    """What one request brought."""

    samples: tuple[Sample, ...]
    """A row for each answer, as if it were the only one."""
    seconds: float
    """That the engine took."""


Ask = Callable[[Request, str | None], Awaitable[Turn]]
"""From a request and the worker that is preferred, by url, to the answers."""


@dataclass(slots=True)
class Conversation:
    """One sample as it grows. T is the number of tokens after the prompt so far."""

    request: Request
    """Of the first turn."""
    last: Sample
    """The newest answer."""
    seconds: float = 0.0
    """That engine and environment have taken."""
    turns: int = 0
    """Answers so far."""
    token_ids: list[int] = field(default_factory=list)
    """Length T."""
    logprobs: list[float] = field(default_factory=list)
    """Length T: 0 for what the model did not say."""
    mask: list[bool] = field(default_factory=list)
    """Length T: False for what the model did not say."""
    spans: list[Span] = field(default_factory=list)
    """Of all turns; what is said between two answers belongs to the span before it."""
    reward: float | None = None
    """The sum of what the steps gave."""
    parts: dict[str, float] = field(default_factory=dict)

    def say(self, answer: Sample) -> None:
        """The model's turn."""
        start = len(self.token_ids)
        for span in answer.weight_version_spans:
            if not self.spans or self.spans[-1].version != span.version:
                self.spans.append(Span(span.version, start + span.start))
        self._extend(answer.response_token_ids, answer.response_logprobs, own=True)
        self.last = answer
        self.turns += 1

    def hear(self, token_ids: Sequence[int]) -> None:
        """The environment's turn."""
        self._extend(token_ids, [0.0] * len(token_ids), own=False)

    def _extend(self, token_ids: Sequence[int], logprobs: Sequence[float], *, own: bool) -> None:
        self.token_ids.extend(map(int, token_ids))
        self.logprobs.extend(map(float, logprobs))
        self.mask.extend([own] * len(token_ids))

    def answer(self) -> Answer:
        """What the environment is told."""
        return Answer(
            turn=self.turns, text=self.last.response_text, token_ids=tuple(map(int, self.last.response_token_ids))
        )

    def earn(self, step: Step) -> None:
        """Adds what a step gave."""
        if step.reward is not None:
            self.reward = (self.reward or 0.0) + step.reward
        for name, part in step.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part

    def score(self) -> SampleScore:
        """The environment's reward, or that it gave none."""
        if self.reward is None:
            return failed("environment_error", f"no step gave a reward in {self.turns} turns")
        return to_score(Reward(self.reward, self.parts), "environment_error")

    def to_sample(self, finish_reason: str, score: SampleScore) -> Sample:
        """The row; the first answer's identity, the last one's text, worker and time."""
        versions = [span.version for span in self.spans]
        return replace(
            self.last,
            prompt_token_ids=self.request.token_ids,
            response_token_ids=self.token_ids,
            response_logprobs=self.logprobs,
            loss_mask=self.mask,
            weight_version_spans=tuple(self.spans),
            weight_version_min=min(versions),
            weight_version_max=max(versions),
            reward=score.value,
            reward_parts=score.parts,
            reward_error=score.error,
            finish_reason=finish_reason,
        )


class Episodes:
    """Holds conversations between engines and environments. Lives in one event loop."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        self._limits = config.rollout.environments
        self._context_tokens = config.worker.max_model_len_tokens
        self._tokenizer = tokenizer
        self._environments = EnvironmentProcesses(self._limits)

    async def close(self) -> None:
        """Ends the environments' processes."""
        await self._environments.close()

    async def play(self, request: Request, spec: EnvironmentSpec, ask: Ask) -> tuple[Sample, ...]:
        """All samples of a group. An exception of ``ask`` ends them all."""
        first = await ask(request.within(self._room_tokens(len(request.token_ids), 0)), None)
        try:
            async with asyncio.TaskGroup() as group:
                playing = [
                    group.create_task(self._converse(Conversation(request, sample, first.seconds), spec, ask))
                    for sample in first.samples
                ]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        samples = [task.result() for task in playing]
        newest = max(sample.generated_at for sample in samples)
        return tuple(
            replace(sample, sample_index=index, attempt_id=first.samples[0].attempt_id, generated_at=newest)
            for index, sample in enumerate(samples)
        )

    async def _converse(self, talk: Conversation, spec: EnvironmentSpec, ask: Ask) -> Sample:
        index = talk.last.sample_index
        talk.say(talk.last)
        try:
            async with self._environments.opened(spec) as environment:
                finish_reason = await self._take_turns(talk, spec, index, environment, ask)
            score = talk.score()
        except EnvironmentFault as fault:
            _LOG.warning("environment_fault", prompt=str(talk.request.record.id), environment=spec.name,
                         reason=fault.reason, detail=fault.detail)  # fmt: skip
            metrics.ENVIRONMENT_FAULTS.labels(spec.name, fault.reason).inc()
            finish_reason, score = "error", failed(fault.reason, fault.detail)
        metrics.CONVERSATIONS.labels(spec.name, finish_reason).inc()
        metrics.TURNS.labels(spec.name).inc(talk.turns)
        return talk.to_sample(finish_reason, score)

    async def _take_turns(
        self, talk: Conversation, spec: EnvironmentSpec, index: int, environment: Instance, ask: Ask
    ) -> str:
        """Turn by turn until it is over; returns why."""
        while True:
            step = await self._step(talk, spec, index, environment)
            if (end := self._end(talk, step)) is not None:
                return end
            heard = self._encode(step.messages, talk)
            room_tokens = self._room_tokens(len(talk.request.token_ids), len(talk.token_ids) + len(heard))
            if room_tokens < 1:
                return "length"
            talk.hear(heard)
            following = talk.request.following(talk.token_ids, index, talk.turns).within(room_tokens)
            turn = await ask(following, talk.last.worker)
            talk.seconds += turn.seconds
            talk.say(turn.samples[0])

    async def _step(self, talk: Conversation, spec: EnvironmentSpec, index: int, environment: Instance) -> Step:
        started = time.monotonic()
        facts = {"environment": spec.name, "sample": index, "turn": talk.turns}
        with traces.spanning(traces.below(talk.request.record.trace), "environment", **facts):
            step = await environment.step(talk.answer())
        seconds = time.monotonic() - started
        metrics.ENVIRONMENT_SECONDS.labels(spec.name).observe(seconds)
        talk.seconds += seconds
        talk.earn(step)
        return step

    def _end(self, talk: Conversation, step: Step) -> str | None:
        """Why no turn follows; None if one does. An answer that was cut off is the last one."""
        if talk.last.finish_reason != "stop":
            return talk.last.finish_reason
        if step.done:
            return "stop"
        if talk.turns >= self._limits.max_turns:
            return "turns"
        return "time" if talk.seconds >= self._limits.episode_timeout_s else None

    def _encode(self, messages: Sequence[Message], talk: Conversation) -> tuple[int, ...]:
        try:
            return self._tokenizer.encode_messages(messages, talk.last.response_token_ids)
        except RecordError as error:
            raise EnvironmentFault("environment_error", f"its messages cannot be tokenised: {error.detail}") from error

    def _room_tokens(self, prompt_tokens: int, said_tokens: int) -> int:
        """How long the next answer may be."""
        return min(self._limits.max_tokens, self._context_tokens - prompt_tokens) - said_tokens
