"""What the reward ``reward_model`` and ``asyncflow serve-scorer`` say to each other, and the server's settings."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.prompts import Message, TokenId
from schemas.sections import Positive, Section

SCORE_ROUTE: Final = "/v1/score"
MAX_SCORE_BYTES: Final = 16 << 20
"""Longest request in bytes: a million token ids as JSON, and the text beside them."""


class ScoreRequest(BaseModel):
    """One answer to be scored, as token ids and as text: the server takes what its model can read.

    Example::

        {"vocabulary": "5f1c…", "prompt_token_ids": [3, 78, 4], "response_token_ids": [11, 12, 2],
         "messages": [{"role": "user", "content": "What is 2+3?"}], "text": null, "response_text": "5"}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocabulary: str | None
    """Hash of the tokens and ids that the token ids are of; null if they are to be ignored."""
    prompt_token_ids: tuple[TokenId, ...]
    """As the engine was given them."""
    response_token_ids: tuple[TokenId, ...]
    """As the engine produced them."""
    messages: tuple[Message, ...] | None = None
    """The prompt, if it is a conversation."""
    text: str | None = None
    """The prompt, if it is raw text. Both are null for a prompt of token ids."""
    response_text: str


class ScoreReply(BaseModel):
    """Example: ``{"score": -0.8125, "read": "token_ids"}``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    score: float
    """What the classifier gave: a finite number."""
    read: Literal["token_ids", "text"]
    """What it was given."""


class ScorerServerConfig(Section):
    """What ``asyncflow serve-scorer`` serves, and how."""

    model: str = ""
    """Directory of a sequence classifier with one label, such as ``asyncflow learn-scorer`` writes. Required."""
    host: str = "127.0.0.1"
    """Address to listen on. Everybody who reaches it is answered."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8100
    """Port to listen on."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it is computed; ``auto`` takes a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format; ``auto`` is bfloat16 on a GPU and float32 on a CPU."""
    batch_rows: Positive = 64
    """Most answers of one forward pass."""
    batch_tokens: Positive = 32_768
    """Most tokens of one forward pass, padding included; a longer answer gets a pass of its own."""
    wait_ms: Annotated[float, Field(ge=0)] = 5.0
    """How long an answer waits for others."""
    waiting_rows: Positive = 4096
    """Most answers that wait; further ones are told to come again (503)."""
    max_tokens: Positive | None = None
    """Longest prompt and answer together; null for what the model's configuration says."""
