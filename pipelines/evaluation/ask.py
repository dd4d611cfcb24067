"""Asks workers the prompts of an evaluation and scores what they answer.

    prompts ──greedy, or n drawn──► Answerer ──at least this version──► Scorer ──► Answers
              (workers, retries, conversations: those of the pipeline)   (killable processes)

The way is the pipeline's own, so an answer here is what a rollout would have been, but for its sampling.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from pipelines.evaluation.choices import choices_of
from schemas.config import RunConfig
from schemas.errors import EngineError
from schemas.identity import GroupId
from schemas.prompts import Prompt, Sampling
from schemas.records import now
from schemas.trajectories import Group
from transforms.generation.answer import Answerer
from transforms.generation.discovery import Discovery
from transforms.generation.engine import open_session
from transforms.generation.outcome import Outcome
from transforms.generation.request import PromptRecord
from transforms.generation.tokenizer import Tokenizer
from transforms.generation.workers import Workers
from transforms.score import scorer_of

_GREEDY: Final = 0.0


@dataclass(frozen=True, slots=True)
class Answers:
    """What one prompt brought."""

    prompt: Prompt
    rewards: tuple[float | None, ...]
    """Of each answer, null where it could not be computed; none if no worker answered."""
    versions: frozenset[int]
    """That produced the tokens of the answers."""
    texts: tuple[str, ...] = ()
    """Of the answers, for who looks at more than their rewards; none if no worker answered."""


class Asker:
    """Asks the same prompts of one version after the other.

    Args:
        config: of the run; its workers are asked, or those of ``evaluation.worker_run``.
        prompts: checked by :func:`pipelines.evaluation.prompts.check_usable`.
        tokenizer: of the model.
    """

    def __init__(self, config: RunConfig, prompts: Sequence[Prompt], tokenizer: Tokenizer) -> None:
        self._config, self._prompts, self._tokenizer = config, prompts, tokenizer
        self._limits = config.evaluation

    def greedy(self, version: int) -> list[Answers]:
        """One answer to each prompt, of the most likely tokens; see :meth:`drawn`."""
        return self._ask(self._records(1), version, _GREEDY)

    def constrained(self, version: int) -> list[Answers]:
        """As :meth:`greedy`, but where only some texts can be right the engine answers one of them.

        See :func:`pipelines.evaluation.choices.choices_of`; answers to other prompts stay free.
        """
        held = [
            replace(record, choices=choices_of(prompt))
            for record, prompt in zip(self._records(1), self._prompts, strict=True)
        ]
        return self._ask(held, version, _GREEDY)

    def drawn(self, version: int) -> list[Answers]:
        """``evaluation.samples`` answers to each prompt.

        Args:
            version: no token is of an older one.

        Raises:
            EngineError: the workers did not come to an end in ``evaluation.patience_s``.
        """
        return self._ask(self._records(self._limits.samples), version, self._limits.temperature)

    def _records(self, samples: int) -> list[PromptRecord]:
        return [
            PromptRecord(GroupId(0, index), _as_asked(prompt, samples, self._limits.max_tokens).encode(), now())
            for index, prompt in enumerate(self._prompts)
        ]

    def _ask(self, records: Sequence[PromptRecord], version: int, temperature: float) -> list[Answers]:
        config = asking_config(self._config, temperature)
        outcomes = asyncio.run(self._within_patience(config, records, version))
        pairs = zip(self._prompts, outcomes, strict=True)
        return [_to_answers(config, prompt, _checked(outcome, version)) for prompt, outcome in pairs]

    async def _within_patience(self, config: RunConfig, records: Sequence[PromptRecord], version: int) -> list[Outcome]:
        try:
            async with asyncio.timeout(self._limits.patience_s):
                return await self._answer_all(config, records, version)
        except TimeoutError as error:
            raise EngineError(
                f"{len(records)} held-out prompts were not answered by version {version} or newer within "
                f"evaluation.patience_s = {self._limits.patience_s:g} s"
            ) from error

    async def _answer_all(self, config: RunConfig, records: Sequence[PromptRecord], version: int) -> list[Outcome]:
        places, scorer = asyncio.Semaphore(self._limits.concurrency), scorer_of(config.rewards, config.model.path)

        async def answer(record: PromptRecord) -> Outcome:
            async with places:
                outcome = await answerer.answer(record, version)
            scorer.begin(outcome)
            return outcome

        async with _open_answerer(config, self._tokenizer) as answerer:
            return await asyncio.gather(*map(answer, records))


def asking_config(config: RunConfig, temperature: float) -> RunConfig:
    """The configuration under which workers are asked.

    A run cannot be told to roll out at temperature 0, which gives nothing to learn from; so what is set here
    is not validated.
    """
    sampling = config.rollout.sampling.model_copy(update={"temperature": temperature, "top_p": 1.0, "top_k": -1})
    changes: dict[str, object] = {"sampling": sampling}
    if not config.evaluation.worker_run:
        return config.model_copy(update={"rollout": config.rollout.model_copy(update=changes)})
    changes |= {"workers": (), "discover": True}
    rollout = config.rollout.model_copy(update=changes)
    return config.model_copy(update={"rollout": rollout, "name": config.evaluation.worker_run})


def _as_asked(prompt: Prompt, samples: int, max_tokens: int | None) -> Prompt:
    """The prompt with the sampling of the evaluation; what bounds answers stays the prompt's."""
    given = prompt.sampling.model_dump(exclude_none=True) if prompt.sampling else {}
    kept = {name: given[name] for name in ("max_tokens", "min_tokens", "stop", "seed") if name in given}
    if max_tokens is not None:
        kept["max_tokens"] = max_tokens
    return prompt.model_copy(update={"group_size": samples, "sampling": Sampling(**kept)})


@asynccontextmanager
async def _open_answerer(config: RunConfig, tokenizer: Tokenizer) -> AsyncIterator[Answerer]:
    """The pipeline's client of the workers, for as long as the context lasts."""
    async with open_session(config.rollout.request_timeout_s, config.worker.key()) as session:
        workers = Workers(config.rollout.workers, session, 0, config.rollout.frozen_after_s)
        answerer = Answerer(config, tokenizer, session, workers)
        discovery = await asyncio.to_thread(Discovery, config, workers, asyncio.get_running_loop())
        try:
            yield answerer
        finally:
            discovery.stop()
            workers.close()
            await answerer.close()


def _checked(outcome: Outcome, version: int) -> Outcome:
    """What the workers say of themselves is checked: a figure of older weights would be taken for another's.

    Raises:
        EngineError: a token is of an older version than was asked for.
    """
    for sample in outcome.samples if isinstance(outcome, Group) else ():
        if sample.weight_version_min < version:
            raise EngineError(
                f"{sample.worker} answered with version {sample.weight_version_min}, asked for {version} or newer"
            )
    return outcome


def _to_answers(config: RunConfig, prompt: Prompt, outcome: Outcome) -> Answers:
    """Waits for the rewards of a group."""
    if not isinstance(outcome, Group):
        return Answers(prompt, (), frozenset())
    versions = frozenset(span.version for sample in outcome.samples for span in sample.weight_version_spans)
    texts = tuple(sample.response_text for sample in outcome.samples)
    scored = scorer_of(config.rewards, config.model.path).finish(config, outcome)
    if not isinstance(scored, Group):
        return Answers(prompt, (None,) * len(texts), versions, texts)
    return Answers(prompt, tuple(sample.reward for sample in scored.samples), versions, texts)
