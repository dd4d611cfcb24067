"""Services that judge answers or take part in conversations: where they are and how they are asked.

Sections of the configuration's ``rewards`` and of its ``rollout.environments``.

Address, model and key stand here, never in a prompt: a prompt only names a section.
"""

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from schemas.sections import Positive, Section

ServiceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""By which prompts name a service: letters, digits, ``_`` and ``-``."""
_Seconds = Annotated[float, Field(gt=0)]


class ServiceConfig(Section):
    """An HTTP service that is asked about every answer, or in every turn."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$", max_length=300)]
    """Its base URL, without ``/v1``. Redirects are not followed."""
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable that holds its key; null for none. The key is sent as ``Authorization: Bearer``."""
    timeout_s: _Seconds = 60.0
    """How long one request may take, from connecting to the last byte."""
    attempts: Positive = 4
    """Failed requests for one answer before its reward is null. Those that the service did not take do not count."""
    concurrency: Positive = 32
    """Requests at once, from each process of the pipeline."""
    open_after: Positive = 5
    """Failures in a row after which it is left alone for a while."""
    open_s: _Seconds = 5.0
    """How long it is left alone; then one request tries, and twice as long if that fails, up to a minute."""
    patience_s: _Seconds = 600.0
    """How long an outage may last, since the service last answered anybody, before answers that wait get null."""

    @model_validator(mode="after")
    def _outlasts_a_request(self) -> Self:
        if self.patience_s < self.timeout_s:
            raise ValueError(
                f"patience_s = {self.patience_s:g} is less than timeout_s = {self.timeout_s:g}: one request that hangs "
                "would use it up; raise the one or lower the other"
            )
        return self


class JudgeConfig(ServiceConfig):
    """A language model behind OpenAI's route, asked what it thinks of an answer."""

    model: str
    """As the route knows it."""
    max_tokens: Positive = 512
    """Longest verdict; one that is cut off gives no reward."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of its sampling."""
    structured: bool = False
    """Has the route hold it to JSON with a number on the scale (OpenAI's structured outputs); small models need it."""


class RewardModelConfig(ServiceConfig):
    """A sequence classifier that ``asyncflow serve-scorer`` serves."""


class UserModelConfig(ServiceConfig):
    """A language model that plays the users of environments which have them, behind OpenAI's route for chats.

    ``step_timeout_s`` bounds all that is done for one reply.
    """

    url: Annotated[str, Field(pattern=r"^(https?://[^\s@?#]+)?$", max_length=300)] = ""
    """Its base URL, without ``/v1``; empty for none. Redirects are not followed."""
    model: str = ""
    """Its name there."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Of the softmax."""
    max_tokens: Positive = 256
    """Longest reply."""
    timeout_s: _Seconds = 30.0
    """How long one request may take."""
    attempts: Positive = 3
    """Failed requests for one reply before its sample goes without a reward."""
    concurrency: Positive = 256
    """Requests at once, from each process that environments run in; further conversations wait."""
    patience_s: _Seconds = 30.0
    """How long an outage may last before samples whose users do not answer go without a reward."""
