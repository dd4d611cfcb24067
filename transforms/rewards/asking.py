"""Where rewards that ask somebody else run: one event loop in a thread of the pipeline's process.

    Score ──group──► event loop ──a coroutine a sample──► Service ──HTTP──► judge, reward model
      ◄── scores, when the last sample has its own ──┘

A sample is a seam: what goes wrong with it is its null reward and nobody else's. Connections, places and circuit
breakers are shared by all groups of the process.
"""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any

import structlog

from schemas.config import RewardsConfig
from schemas.errors import ModelError, ReasonedError
from schemas.prompts import RewardSpec
from schemas.trajectories import Group, Sample
from transforms.rewards import registry
from transforms.rewards.asked import AskingReward, Case
from transforms.rewards.scoring import SampleScore, describe, failed, to_score
from transforms.rewards.service import Service
from transforms.rewards.vocabulary import vocabulary_hash

_LOG = structlog.get_logger(__name__)


class Asking:
    """All services of a configuration.

    Args:
        config: of rewards.
        model: directory of the model that answers, whose token ids the samples have; empty if it is not known.

    Raises:
        ConfigError: the key of a service is not in the environment.
    """

    def __init__(self, config: RewardsConfig, model: str = "") -> None:
        self._model = model
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._judges = {name: (Service("judge", name, each), each) for name, each in config.judges.items()}
        self._reward_models = {name: Service("reward_model", name, each) for name, each in config.reward_models.items()}

    def submit(self, spec: RewardSpec, group: Group) -> "Future[list[SampleScore]]":
        """Begins to score a group. The future raises nothing but what cancelled it."""
        return asyncio.run_coroutine_threadsafe(self._score(spec, group), self._running())

    def _running(self) -> asyncio.AbstractEventLoop:
        """The event loop; its thread starts at the first call."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run, args=(self._loop,), name="asking", daemon=True).start()
            return self._loop

    @cached_property
    def _vocabulary(self) -> str | None:
        """Some tenths of a second at first."""
        try:
            return vocabulary_hash(self._model) if self._model and self._reward_models else None
        except ModelError as error:
            _LOG.warning("token_ids_not_sent", reason=str(error))
            return None

    def stop(self) -> None:
        """Closes the connections and ends the thread."""
        services = [service for service, _ in self._judges.values()] + list(self._reward_models.values())
        loop = self._running()
        asyncio.run_coroutine_threadsafe(_close(services), loop).result()
        loop.call_soon_threadsafe(loop.stop)

    async def _score(self, spec: RewardSpec, group: Group) -> list[SampleScore]:
        entry = registry.find(spec.name)
        function: AskingReward = entry.thing  # type: ignore[assignment]  # is_asked
        try:
            arguments = registry.parse_arguments(entry, spec)
        except ReasonedError as error:
            return [failed(error.reason, error.detail)] * len(group.samples)
        case = Case(group.prompt, self._judges, self._reward_models, self._vocabulary)
        return await asyncio.gather(*(_score_one(function, sample, arguments, case) for sample in group.samples))


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _close(services: Sequence[Service]) -> None:
    for service in services:
        await service.close()


async def _score_one(function: AskingReward, sample: Sample, arguments: Any, case: Case) -> SampleScore:
    try:
        return to_score(await function(sample, arguments, case))
    except ReasonedError as error:
        return failed(error.reason, error.detail)
    except Exception as error:  # noqa: BLE001 - the reward call is a seam
        return failed("reward_error", describe(error))
