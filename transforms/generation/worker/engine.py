"""The running vLLM engine, reduced to what a weight follower does with it.

open_files()     map the new files in every vLLM worker              generating
open_snapshot()  copy the learner's buffer in every vLLM worker      generating
open_adapter()   copy an adapter's files                             generating
load()           pause ─► load ─► reset caches ─► resume      paused, requests kept
and the probe's logprobs under the new weights, computed before anything else
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from schemas.errors import RecordError, StateError
from transforms.generation.worker.adapter import AdapterSlot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_FIRST: Final = -2
"""Priority of the probe; requests of people have -1, all others 0."""
_PREFIX_TOKENS: Final = 32
_DECODED_TOKENS: Final = 16
_DECODING_TOLERANCE: Final = 0.5
"""Nats, in the mean: rounding stays below a tenth of it, nonsense is several nats away."""
_LOOK_S: Final = 0.005
"""Between two looks whether a copy is made."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Loading:
    """What one load took and showed."""

    pause_s: float
    """From the pause to the resumption."""
    load_s: float
    """Copying the weights: part of the pause."""
    probe_s: float
    """From the resumption to the probe's answer, which the answers to requests wait for."""
    probe_logprobs: list[float]
    """Length P - 1."""


class Engine(Protocol):
    """What the follower needs of an engine."""

    async def open_files(self, files: Sequence[str]) -> None:
        """Maps files; raises ``RecordError`` (``vanished``) if that fails, and nothing has changed."""

    async def open_snapshot(self, source: str, layout: str) -> None:
        """Copies a buffer and checks the copy; raises ``RecordError`` if it is not good, and nothing has changed."""

    async def open_adapter(self, directory: Path) -> None:
        """Copies an adapter; raises ``RecordError`` (``vanished``) if that fails, and nothing has changed."""

    async def load(self, version: int, probe_token_ids: Sequence[int]) -> Loading:
        """Loads what was opened; raises ``StateError`` if that fails, and the weights are undefined."""

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log probability of token i + 1 given tokens 0 to i at temperature 1, of length P - 1."""


class VllmEngine:
    """An :class:`Engine` over vLLM's client of the engine process."""

    def __init__(self, client: Any) -> None:
        """Takes a ``vllm.engine.protocol.EngineClient`` that was started with priority scheduling."""
        self._client = client
        self._adapter: AdapterSlot | None = None
        self._probes = 0
        self._checked = False

    async def prepare(self) -> None:
        """Starts the weight transfer and computes once what compiles at its first use."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._client.init_weight_transfer_engine(WeightTransferInitRequest(init_info={}))
        started = time.monotonic()
        await self._ask([1, 2, 3], max_tokens=4, logprobs=0)
        await self.prompt_logprobs([1, 2, 3])
        log.info("engine_warm", seconds=round(time.monotonic() - started, 2))

    async def open_files(self, files: Sequence[str]) -> None:
        """Maps files in every vLLM worker process, or copies them to its GPU beside the generation.

        Raises:
            RecordError: ``vanished``; the engine still has its old weights.
        """
        await self._staged(await self._call("open_weights", list(files)))

    async def open_snapshot(self, source: str, layout: str) -> None:
        """Copies a learner's buffer in every vLLM worker process, beside the generation.

        Args:
            source: the text of ``SOURCE.json``.
            layout: the text of ``layout.json``.

        Raises:
            RecordError: with the first worker's reason; the engine still has its old weights.
        """
        await self._staged(await self._call("begin_snapshot", source, layout))

    async def _staged(self, outcomes: list[Any]) -> None:
        """Waits until a copy is made, and raises the refusal of the first worker that has one."""
        while None in outcomes:
            await asyncio.sleep(_LOOK_S)
            outcomes = await self._call("poll_snapshot")
        for outcome in filter(None, outcomes):
            reason, _, detail = outcome.partition(": ")
            raise RecordError(reason, detail)

    async def open_adapter(self, directory: Path) -> None:
        """Copies an adapter's files.

        Raises:
            RecordError: ``vanished``; the engine still has its old adapter.
        """
        self._adapter = self._adapter or AdapterSlot(self._client)
        try:
            await asyncio.to_thread(self._adapter.open, directory)
        except OSError as error:
            self._adapter.forget()
            raise RecordError("vanished", f"the adapter cannot be copied: {error}") from error

    async def _call(self, method: str, *arguments: Any) -> list[Any]:
        """Calls a method of every vLLM worker that changes nothing the engine computes with."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            answers: list[Any] = await self._client.collective_rpc(method, args=arguments)
        except EngineDeadError:
            raise
        except Exception as error:
            raise RecordError("vanished", f"the engine cannot open the weights: {error}") from error
        return answers

    async def load(self, version: int, probe_token_ids: Sequence[int]) -> Loading:
        """Swaps the weights and keeps the requests that run; their caches are computed again.

        The first time it also compares what the engine decodes with what it computes as a prompt.

        Raises:
            StateError: the engine failed in the middle, its prefix cache kept entries of the old weights, or it
                decodes nonsense.
        """
        try:
            loading = await self._load(version, probe_token_ids)
            if not self._checked:
                await self.check_decoding(probe_token_ids)
                self._checked = True
            return loading
        except StateError:
            raise
        except Exception as error:
            raise StateError(f"version {version}: the engine failed while it was loaded: {error}") from error

    async def _load(self, version: int, probe_token_ids: Sequence[int]) -> Loading:
        if self._client.model_config.is_multimodal_model:
            await self._client.renderer.clear_mm_cache_async()
        paused = time.monotonic()
        # pause_generation() is this and a sleep of 20 ms, which are for callers who wait for the last answers
        await self._client.engine_core.pause_scheduler_async(mode="keep")
        loading = time.monotonic()
        await self._replace()
        loaded = time.monotonic()
        _, is_reset, probe = await asyncio.gather(
            self._client.update_weight_version(str(version)),
            self._client.reset_prefix_cache(),
            self._send(list(probe_token_ids), max_tokens=1, prompt_logprobs=0),
        )
        if not is_reset:
            raise StateError(f"version {version}: the prefix cache was not reset; it holds keys of the old weights")
        await self._client.resume_generation()
        resumed = time.monotonic()
        logprobs = _prompt_logprobs(await _receive(probe), probe_token_ids)
        return Loading(resumed - paused, loaded - loading, time.monotonic() - resumed, logprobs)

    async def _replace(self) -> None:
        if self._adapter is not None and self._adapter.is_opened:
            await self._adapter.load()
        else:
            await self._client.collective_rpc("replace_weights")

    async def name_weights(self, version: int) -> None:
        """Says which version the weights are that the engine has; answers tell it from now on."""
        await self._client.update_weight_version(str(version))

    async def check_decoding(self, token_ids: Sequence[int]) -> None:
        """Lets the engine write some tokens, and asks it what it thinks of them as a part of the prompt.

        The probe is a prompt. Tokens are decoded by other kernels, and on a GPU by captured graphs: were those
        wrong, nothing else would tell.

        Raises:
            StateError: the two disagree.
        """
        prefix = list(token_ids[:_PREFIX_TOKENS])
        count = min(_DECODED_TOKENS, self._client.model_config.max_model_len - len(prefix) - 1)
        answer = await self._ask(prefix, max_tokens=count, ignore_eos=True, logprobs=0, seed=0)
        written = list(answer.outputs[0].token_ids)
        decoded = [position[token].logprob for position, token in zip(answer.outputs[0].logprobs, written, strict=True)]
        read = (await self.prompt_logprobs([*prefix, *written]))[-len(written) :]
        difference = sum(abs(one - other) for one, other in zip(decoded, read, strict=True)) / len(written)
        if not difference <= _DECODING_TOLERANCE:
            raise StateError(
                f"the engine's logprobs of {len(written)} tokens that it wrote differ by {difference:.2g} nats in the "
                "mean from those it gives the same tokens in a prompt; try worker.enforce_eager = true"
            )

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
