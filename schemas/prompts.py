"""Records of ``{run}.prompts``: written by producers in any language, read by the rollout pipeline."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.limits import MAX_GROUP_SIZE, MAX_PROMPT_BYTES
from schemas.records import Record

FEEDBACK_REWARD = "feedback"
"""The reward name of prompts that people or programs score later."""

VERIFIABLE = "verifiable"
"""The part of a rated row's reward that a function gives, before people speak."""

VERIFIABLE_SHARE = "verifiable_share"
"""How much of the blended reward that part is, from 0 to 1."""

ENVIRONMENT_REWARD = "environment"
"""The reward name of prompts whose environment scores the answers."""

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class Part(BaseModel):
    """A piece of a prompt. Unknown keys are refused: they are misspelt more often than new."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Message(Part):
    """One turn of a conversation. Example: ``{"role": "user", "content": "What is 2+3?"}``."""

    role: str = Field(min_length=1, max_length=64)
    content: str


class Call(Part):
    """Something registered, by its name, and what it is given."""

    name: str = Field(min_length=1, max_length=128)
    args: dict[str, Any] = Field(default_factory=dict)


class RewardSpec(Call):
    """Which reward scores the answers. Example: ``{"name": "last_number", "args": {"answer": "5"}}``.

    The name is a registered one, ``feedback`` or ``environment``; the arguments are that reward's,
    such as the right answer.
    """


class FeedbackArguments(Part):
    """Arguments of the reward ``feedback``.

    Example: ``{"verifiable": {"name": "last_number", "args": {"answer": "5"}}, "share": 0.25}``.
    """

    verifiable: RewardSpec | None = None
    """A function's reward to blend with what people say; null for their word alone."""
    share: float = Field(default=0.5, ge=0, le=1)
    """How much of the reward it is."""


class EnvironmentSpec(Call):
    """Who answers the model between its turns. Example: ``{"name": "guess_number", "args": {"secret": 42}}``."""


class Sampling(Part):
    """How answers are drawn; what is null comes from the pipeline's configuration."""

    temperature: float | None = Field(default=None, gt=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of one answer."""
    min_tokens: int | None = Field(default=None, ge=0)
    """Fewest tokens of one answer, before an end-of-sequence token may be drawn."""
    stop: tuple[str, ...] | None = None
    seed: int | None = None
    """Of the draws of this prompt. Workers on CPUs answer without it: their engine does not survive one."""


class Prompt(Record):
    """One prompt, given as exactly one of ``messages``, ``text`` and ``token_ids``.

    Example::

        {"schema": 1, "prompt_id": "gsm8k/17", "task": "sums",
         "messages": [{"role": "user", "content": "What is 2+3?"}],
         "reward": {"name": "last_number", "args": {"answer": "5"}},
         "group_size": null, "sampling": null, "purpose": "train", "metadata": {}}
    """

    model_config = ConfigDict(extra="forbid")
    max_bytes: ClassVar[int | None] = MAX_PROMPT_BYTES

    prompt_id: str | None = Field(default=None, max_length=1024)
    """The producer's own name for the prompt; null if it has none. It identifies nothing here."""
    task: str = Field(default="default", min_length=1, max_length=256)
    """For grouping figures."""
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    """A conversation, put through the model's chat template."""
    text: str | None = Field(default=None, min_length=1)
    """Raw text, tokenised without a template."""
    token_ids: tuple[TokenId, ...] | None = Field(default=None, min_length=1)
    """Token ids, sent as they are."""
    reward: RewardSpec
    environment: EnvironmentSpec | None = None
    """What the model talks to, turn by turn; null for a single answer."""
    group_size: int | None = Field(default=None, ge=1, le=MAX_GROUP_SIZE)
    """Samples to draw; null for the pipeline's configured number."""
    sampling: Sampling | None = None
    """Null for the pipeline's configured sampling."""
    purpose: Literal["train"] = "train"
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Anything. Of all this only ``asyncflow curriculum`` reads something, the mark of its own prompts:
    ``{"curriculum": {"number": 17, "pass_rate": 0.25}}``."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = [name for name in ("messages", "text", "token_ids") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of messages, text and token_ids, got {given or 'none'}")
        return self

    @model_validator(mode="after")
    def _fits_environment(self) -> Self:
        if self.environment and self.text is not None:
            raise ValueError(
                "text with an environment, whose messages come through the chat template: "
                "give messages, or token_ids of a conversation in the model's template"
            )
        if self.reward.name == ENVIRONMENT_REWARD and not self.environment:
            raise ValueError("the reward is the environment's, but there is none: give environment, or another reward")
        return self

    @model_validator(mode="after")
    def _knows_blend(self) -> Self:
        if self.reward.name == FEEDBACK_REWARD and self.feedback.verifiable is not None:
            function = self.feedback.verifiable.name
            if function in (FEEDBACK_REWARD, ENVIRONMENT_REWARD):
                raise ValueError(f"reward.args.verifiable is {function!r}, expected the name of a function")
        return self

    @property
    def feedback(self) -> FeedbackArguments:
        """The arguments of a reward that people or programs give."""
        return FeedbackArguments.model_validate(self.reward.args)

    @property
    def function(self) -> RewardSpec | None:
        """The function that scores the answers; null where an environment or people alone do."""
        if self.reward.name == FEEDBACK_REWARD:
            return self.feedback.verifiable
        return None if self.reward.name == ENVIRONMENT_REWARD else self.reward
