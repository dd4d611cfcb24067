"""From the bytes of a prompt to what an engine is asked.

Everything that can be wrong with a prompt is found here, before any engine is troubled.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from schemas.config import RolloutConfig
from schemas.identity import GroupId
from schemas.prompts import Prompt, Sampling
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
    """By Kafka's clock, in UTC."""


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

    def body(self) -> dict[str, Any]:
        """What is sent to the engine."""
        return {"token_ids": self.token_ids, "sampling_params": self.sampling_params}


def prepare(record: PromptRecord, config: RolloutConfig, tokenizer: Encoder, min_version: int = 0) -> Request:
    """Reads and checks a prompt.

    Raises:
        RecordError: with the reason of the dead letter.
    """
    prompt = Prompt.decode(record.value)
    registry.check(prompt.reward)
    group_size = prompt.group_size or config.group_size
    return Request(
        record=record,
        prompt=prompt,
        token_ids=tokenizer.encode(prompt),
        group_size=group_size,
        sampling_params={"n": group_size, "logprobs": 0, **sampling_params(prompt.sampling, config)},
        min_version=min_version,
    )


def sampling_params(given: Sampling | None, config: RolloutConfig) -> dict[str, Any]:
    """The prompt's sampling, completed by the configuration's."""
    wanted = given.model_dump(exclude_none=True, mode="json") if given else {}
    return {**config.sampling.model_dump(), **wanted}
