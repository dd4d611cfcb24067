"""The forms of OpenAI's chat route: what is taken, and how answers are told.

What would change how an answer is drawn, and is not one of temperature, top_p, max_tokens, stop and seed, is refused:
the learner has to compute the same distribution. Beside OpenAI's keys an answer has ``asyncflow``.
"""

import time
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import RecordError
from schemas.exchanges import Exchange
from schemas.identity import RolloutId
from schemas.prompts import Message, Sampling
from schemas.records import first_fault
from schemas.trajectories import Sample

_UNKNOWN: Final = "extra_forbidden"
StopText = Annotated[str, Field(max_length=256)]


class TextPart(BaseModel):
    """A piece of a message; pictures and sound are not taken."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="ignore")

    role: str = Field(min_length=1, max_length=64)
    content: str | list[TextPart]

    def to_message(self) -> Message:
        """As it is recorded."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role=self.role, content=text)


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of ``POST /v1/chat/completions``."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, gt=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    user: str | None = Field(default=None, min_length=1, max_length=256)
    metadata: dict[str, Any] | None = None
    task: str | None = Field(default=None, min_length=1, max_length=256)
    """Ours: for grouping figures, and for the baseline that the answer's reward is compared with."""
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @classmethod
    def read(cls, body: bytes) -> "ChatRequest":
        """Reads a body.

        Raises:
            RecordError: ``bad_request``, with the first fault in words.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise RecordError("bad_request", _explain(error)) from error

    def to_exchange(self, user: str) -> Exchange:
        """What is recorded of it.

        Raises:
            RecordError: ``bad_request``: a value that the record does not take.
        """
        try:
            return Exchange(
                user=user,
                task=self.task or "chat",
                messages=tuple(message.to_message() for message in self.messages),
                sampling=self._sampling(),
                metadata=self.metadata or {},
            )
        except ValidationError as error:
            raise RecordError("bad_request", first_fault(error)) from error

    def _sampling(self) -> Sampling | None:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        sampling = Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            stop=tuple(stop for stop in stops if stop) or None,
            seed=self.seed,
        )
        return None if sampling == Sampling() else sampling


def _explain(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    name = ".".join(map(str, fault["loc"]))
    if fault["type"] == _UNKNOWN:
        return f"{name[:80]!r} is not taken here: an answer has to be drawn as it is trained; leave it out"
    if name == "temperature":
        return f"temperature {fault['input']}: an answer of the most likely tokens cannot be trained; give more than 0"
    return first_fault(error)


class Teller:
    """Tells one answer in OpenAI's forms.

    Args:
        model: its name.
        rollout: the answer's, which is also the completion's id.
        receipt: for whoever asked; null where none are wanted.
    """

    def __init__(self, model: str, rollout: RolloutId, receipt: str | None) -> None:
        self._rollout, self._receipt = rollout, receipt
        self._base = {"id": str(rollout), "created": int(time.time()), "model": model}

    def whole(self, sample: Sample, text: str) -> dict[str, Any]:
        """An answer that was not streamed."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": sample.finish_reason, "logprobs": None}
        return {
            **self._base, "object": "chat.completion", "choices": [choice], "usage": usage(sample),
            "asyncflow": self._facts(sample),
        }  # fmt: skip

    def first(self) -> dict[str, Any]:
        """The first event of a stream: whose answer it will be."""
        return {**self._chunk({"role": "assistant", "content": ""}), "asyncflow": self._facts(None)}

    def piece(self, text: str) -> dict[str, Any]:
        """A piece of the text."""
        return self._chunk({"content": text})

    def last(self, sample: Sample) -> dict[str, Any]:
        """The last event: the answer is whole, and Kafka has it."""
        return {**self._chunk({}, sample.finish_reason), "asyncflow": self._facts(sample)}

    def usage(self, sample: Sample) -> dict[str, Any]:
        """The event that some clients ask for after it."""
        return {**self._base, "object": "chat.completion.chunk", "choices": [], "usage": usage(sample)}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._base, "object": "chat.completion.chunk", "choices": [choice]}

    def _facts(self, sample: Sample | None) -> dict[str, Any]:
        facts: dict[str, Any] = {"rollout": str(self._rollout), "receipt": self._receipt}
        return facts if sample is None else {**facts, "versions": versions_of(sample), "written": True}


def versions_of(sample: Sample) -> list[int]:
    """The weight versions that answered, in the order in which they did."""
    return list(dict.fromkeys(span.version for span in sample.weight_version_spans))


def usage(sample: Sample) -> dict[str, int]:
    """How many tokens were read and written."""
    prompt, answer = len(sample.prompt_token_ids), len(sample.response_token_ids)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def headers_of(rollout: RolloutId, receipt: str | None, versions: Sequence[int] = ()) -> dict[str, str]:
    """The response headers that name an answer."""
    headers = {"X-AsyncFlow-Rollout": str(rollout)}
    if receipt is not None:
        headers["X-AsyncFlow-Receipt"] = receipt
    if versions:
        headers["X-AsyncFlow-Versions"] = ",".join(map(str, versions))
    return headers
