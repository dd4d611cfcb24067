"""Held-out accuracy: greedy answers of a worker to prompts that are never trained, scored by their rewards.

prompts ──prepare──► requests ──worker, temperature 0──► samples ──reward processes──► mean reward
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import aiohttp

from schemas.config import RunConfig
from schemas.errors import EngineError
from schemas.evals import EvalResult
from schemas.identity import GroupId
from schemas.prompts import Prompt, RewardSpec
from schemas.records import now
from schemas.trajectories import Sample, new_attempt_id
from transforms.generation.engine import Attempt, build_samples, generate
from transforms.generation.request import PromptRecord, Request, prepare
from transforms.generation.tokenizer import Tokenizer
from transforms.rewards import registry
from transforms.score import scorer_of

_CONCURRENT = 32


def evaluate(config: RunConfig, prompts: Sequence[Prompt], version: int) -> EvalResult:
    """The mean reward of greedy answers by ``version`` or a newer one.

    Samples whose reward could not be computed are left out of the mean.

    Raises:
        EngineError: the worker did not answer.
        RecordError: a prompt that this model cannot be asked.
    """
    registry.load(config.rewards.modules)
    tokenizer = Tokenizer.load(config.model.path)
    requests = [_greedy(config, tokenizer, index, prompt, version) for index, prompt in enumerate(prompts)]
    samples = asyncio.run(_answer(config, tokenizer, requests))
    rewards = _score(config, [request.prompt.reward for request in requests], samples)
    if not rewards:
        raise EngineError(f"none of {len(prompts)} held-out answers got a reward")
    return EvalResult(
        version=version,
        task=prompts[0].task,
        metric="mean_reward",
        value=fmean(rewards),
        samples=len(rewards),
        temperature=0.0,
    )


def _greedy(config: RunConfig, tokenizer: Tokenizer, index: int, prompt: Prompt, version: int) -> Request:
    record = PromptRecord(GroupId(0, index), prompt.encode(), now())
    request = prepare(record, config.rollout, tokenizer, version)
    return replace(request, group_size=1, sampling_params={**request.sampling_params, "n": 1, "temperature": 0.0})


async def _answer(config: RunConfig, tokenizer: Tokenizer, requests: Sequence[Request]) -> list[Sample]:
    url, places = config.rollout.workers[0], asyncio.Semaphore(_CONCURRENT)
    timeout = aiohttp.ClientTimeout(total=config.rollout.request_timeout_s)

    async def ask(request: Request) -> Sample:
        async with places:
            completions = await generate(session, url, request, tokenizer.vocabulary_tokens)
        texts = tokenizer.decode([completion.token_ids for completion in completions])
        attempt = Attempt(new_attempt_id(), url, now())
        return build_samples(config.name, request, attempt, completions, texts)[0]

    async with aiohttp.ClientSession(timeout=timeout) as session:
        return await asyncio.gather(*(ask(request) for request in requests))


def _score(config: RunConfig, specs: Sequence[RewardSpec], samples: Sequence[Sample]) -> list[float]:
    scorer = scorer_of(config.rewards)
    scores = [scorer.score_alone(spec, [sample])[0] for spec, sample in zip(specs, samples, strict=True)]
    return [score.value for score in scores if score.value is not None]
