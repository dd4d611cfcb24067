"""From the bytes of a prompt to what an engine is asked.

Everything that can be wrong with a prompt is found here, before any engine is troubled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from schemas.config import RolloutConfig
from schemas.identity import GroupId
from schemas.prompts import Prompt, Sampling
from schemas.trace_context import TraceContext
from transforms.environments import registry as environments
from transforms.rewards import registry


class Encoder(Protocol):
    """What this module needs of a tokenizer."""

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's token ids; raises RecordError."""


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A prompt as Kafka delivers it."""

    id: GroupId
    value: bytes | None
    written_at: datetime
    """By its producer's clock, in UTC."""
    choices: tuple[str, ...] = ()
    """Texts of which each answer is one; none where it is free, as in every rollout: evaluations alone set it."""
    trace: TraceContext | None = None
    """The span that those of its answers go below; null where nothing is traced."""


@dataclass(frozen=True, slots=True)
class Request:
    """One group to be generated."""

    record: PromptRecord
    prompt: Prompt
    token_ids: tuple[int, ...]
    group_size: int
    sampling_params: dict[str, Any]
    """As vLLM's route takes them."""
    min_version: int = 0
    """The oldest weight version that may answer; 0 for any."""

    def below(self, trace: TraceContext | None) -> "Request":
        """The same, whose spans go below another one."""
        return replace(self, record=replace(self.record, trace=trace)) if trace else self

    def body(self) -> dict[str, Any]:
        """What is sent to the engine."""
        return {"token_ids": self.token_ids, "sampling_params": self.sampling_params}

    def within(self, room_tokens: int) -> "Request":
        """The same, for answers of at most so many tokens; 1 or more."""
        most = min(self.sampling_params["max_tokens"], max(1, room_tokens))
        bounds = {"max_tokens": most}
        if "min_tokens" in self.sampling_params:
            bounds["min_tokens"] = min(self.sampling_params["min_tokens"], most)
        return replace(self, sampling_params={**self.sampling_params, **bounds})

    def following(self, token_ids: Sequence[int], sample_index: int, turn: int) -> "Request":
        """A later turn of one sample, 1 or more answers after the first.

        Args:
            token_ids: everything that was said after the prompt.
            sample_index: of the sample.
            turn: how many answers it has given.
        """
        parameters = {**self.sampling_params, "n": 1}
        if "seed" in parameters:  # no two answers of a group draw the same numbers
            parameters["seed"] += turn * self.group_size + sample_index
        said = (*self.token_ids, *token_ids)
        return replace(self, token_ids=said, group_size=1, sampling_params=parameters)


def prepare(record: PromptRecord, config: RolloutConfig, tokenizer: Encoder, min_version: int = 0) -> Request:
    """Reads and checks a prompt.

    Raises:
        RecordError: with the reason of the dead letter.
    """
    prompt = Prompt.decode(record.value)
    registry.check(prompt.function or prompt.reward)
    if prompt.environment:
        environments.check(prompt.environment)
    group_size = prompt.group_size or config.group_size
    sampling = _held(sampling_params(prompt.sampling, config), record.choices)
    # Answers are decoded here, whole; token by token that is over half of the work of vLLM's server process.
    needs_text = bool(sampling.get("stop"))
    return Request(
        record=record,
        prompt=prompt,
        token_ids=tokenizer.encode(prompt),
        group_size=group_size,
        sampling_params={"n": group_size, "logprobs": 0, "detokenize": needs_text, **sampling},
        min_version=min_version,
    )


def sampling_params(given: Sampling | None, config: RolloutConfig) -> dict[str, Any]:
    """The prompt's sampling, completed by the configuration's."""
    wanted = given.model_dump(exclude_none=True, mode="json") if given else {}
    return {**config.sampling.model_dump(), **wanted}


def _held(sampling: dict[str, Any], choices: Sequence[str]) -> dict[str, Any]:
    """The sampling with which an engine answers one of the choices, whole, and ends.

    A token stands for one byte at least, so the longest choice and the end of the turn always fit.
    """
    if not choices:
        return sampling
    kept = {name: value for name, value in sampling.items() if name not in ("min_tokens", "stop")}
    longest = max(len(choice.encode()) for choice in choices)
    return {**kept, "max_tokens": longest + 1, "structured_outputs": {"choice": list(choices)}}
