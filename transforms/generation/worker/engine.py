"""The running vLLM engine, reduced to what a weight follower does with it.

open_files()   map the new files in every vLLM worker       generating
load()         pause ─► load ─► reset caches ─► resume      paused, requests kept
and the probe's logprobs under the new weights, computed before anything else
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from schemas.errors import RecordError, StateError

if TYPE_CHECKING:
    from collections.abc import Sequence

_FIRST: Final = -1
"""Priority of the probe; requests have 0."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Loading:
    """What one load took and showed."""

    pause_s: float
    """From the pause to the resumption."""
    load_s: float
    """Copying the weights: part of the pause."""
    probe_logprobs: list[float]
    """Length P - 1."""


class Engine(Protocol):
    """What the follower needs of an engine."""

    async def open_files(self, files: Sequence[str]) -> None:
        """Maps files; raises ``RecordError`` (``vanished``) if that fails, and nothing has changed."""

    async def load(self, files: Sequence[str], version: int, probe_token_ids: Sequence[int]) -> Loading:
        """Loads opened files; raises ``StateError`` if that fails, and the weights are undefined."""


class VllmEngine:
    """An :class:`Engine` over vLLM's client of the engine process."""

    def __init__(self, client: Any) -> None:
        """Takes a ``vllm.engine.protocol.EngineClient`` that was started with priority scheduling."""
        self._client = client
        self._probes = 0

    async def prepare(self) -> None:
        """Starts the weight transfer and computes once what compiles at its first use."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._client.init_weight_transfer_engine(WeightTransferInitRequest(init_info={}))
        started = time.monotonic()
        await self._ask([1, 2, 3], max_tokens=4, logprobs=0)
        await self.prompt_logprobs([1, 2, 3])
        log.info("engine_warm", seconds=round(time.monotonic() - started, 2))

    async def open_files(self, files: Sequence[str]) -> None:
        """Maps files in every vLLM worker process.

        Raises:
            RecordError: ``vanished``; the engine still has its old weights.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._client.collective_rpc("open_weights", args=(list(files),))
        except EngineDeadError:
            raise
        except Exception as error:
            raise RecordError("vanished", f"the engine cannot open the files: {error}") from error

    async def load(self, files: Sequence[str], version: int, probe_token_ids: Sequence[int]) -> Loading:  # noqa: ARG002 - they are open already
        """Swaps the weights and keeps the requests that run; their caches are computed again.

        Raises:
            StateError: the engine failed in the middle, or its prefix cache kept entries of the old weights.
        """
        try:
            return await self._load(version, probe_token_ids)
        except StateError:
            raise
        except Exception as error:
            raise StateError(f"version {version}: the engine failed while it was loaded: {error}") from error

    async def _load(self, version: int, probe_token_ids: Sequence[int]) -> Loading:
        paused = time.monotonic()
        await self._client.pause_generation(mode="keep")
        loading = time.monotonic()
        await self._replace_weights(version)
        loaded = time.monotonic()
        if not await self._client.reset_prefix_cache():
            raise StateError(f"version {version}: the prefix cache was not reset; it holds keys of the old weights")
        probe = await self._send(list(probe_token_ids), max_tokens=1, prompt_logprobs=0)
        await self._client.resume_generation()
        resumed = time.monotonic()
        logprobs = _prompt_logprobs(await _receive(probe), probe_token_ids)
        return Loading(resumed - paused, loaded - loading, logprobs)

    async def _replace_weights(self, version: int) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._client.start_weight_update()
        await self._client.update_weights(WeightTransferUpdateRequest(update_info={}))
        await self._client.finish_weight_update(str(version))

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log probability of token i + 1 given tokens 0 to i at temperature 1, of length P - 1."""
        answer = await self._ask(list(token_ids), max_tokens=1, prompt_logprobs=0)
        return _prompt_logprobs(answer, token_ids)

    async def _ask(self, token_ids: list[int], **sampling: Any) -> Any:
        return await _receive(await self._send(token_ids, **sampling))

    async def _send(self, token_ids: list[int], **sampling: Any) -> Any:
        """Hands a request to the engine process and returns the collector of its answer.

        A request that is sent while the engine is paused is computed first when it resumes.
        """
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        self._probes += 1
        return await self._client.add_request(
            f"asyncflow-probe-{self._probes}",
            TokensPrompt(prompt_token_ids=token_ids),
            SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False, **sampling),
            priority=_FIRST,
        )


async def _receive(collector: Any) -> Any:
    while not (answer := await collector.get()).finished:
        pass
    return answer


def _prompt_logprobs(answer: Any, token_ids: Sequence[int]) -> list[float]:
    pairs = zip(answer.prompt_logprobs[1:], token_ids[1:], strict=True)
    return [float(position[token].logprob) for position, token in pairs]
