"""Environments by name: what a model talks to between its turns. One instance for each sample.

    @environment("parrot")
    class Parrot(Environment):
        async def reset(self, arguments: Word) -> None:
            self._word = arguments.word

        async def step(self, answer: Answer) -> Step:
            return Step(done=True, reward=float(answer.text == self._word))

The class of ``arguments`` is taken from the annotation of ``reset``. A prompt's arguments are checked
against it when the prompt arrives. A program's own environments are registered by importing the
modules named in ``rollout.environments.modules``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.prompts import Message
from transforms.registry import Arguments, Registry

__all__ = ["Answer", "Arguments", "Environment", "Step", "environment"]

Share = Annotated[float, Field(ge=-1e30, le=1e30)]
"""What a step adds to a reward: a sum of them stays far below what 32 bits hold."""


class Answer(BaseModel):
    """What the model said in one turn. Example: ``{"turn": 2, "text": "50", "token_ids": [57, 52, 2]}``."""

    model_config = ConfigDict(frozen=True)

    turn: int
    """1 for the first."""
    text: str
    """Without special tokens."""
    token_ids: tuple[int, ...]
    """As the engine produced them, the end-of-sequence token included."""


class Step(BaseModel):
    """What the environment says to an answer.

    Examples: ``Step(messages=(Message(role="user", content="higher"),))``, ``Step(done=True, reward=1.0)``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    messages: tuple[Message, ...] = ()
    """What the model reads next, of the roles that its chat template knows; 1 or more unless ``done``."""
    done: bool = False
    """Whether the conversation is over."""
    reward: Share | None = None
    """What this step adds to the reward of the sample; null for nothing. A sample to which no step gave
    any has none, and is not trained."""
    parts: dict[str, Share] = Field(default_factory=dict, max_length=100)
    """Named parts of it, for figures; each name is summed over the steps."""

    @model_validator(mode="after")
    def _goes_on(self) -> Self:
        if not self.done and not self.messages:
            raise ValueError("neither done nor a message for the model: give done=True, or messages")
        return self


class Environment(ABC):
    """Base of all environments. Its methods may await, and must not block: see docs/environments.md."""

    @abstractmethod
    async def reset(self, arguments: Any) -> None:
        """Begins; called once, before the first step."""

    @abstractmethod
    async def step(self, answer: Answer) -> Step:
        """Answers the model."""

    async def close(self) -> None:
        """Lets go of what it holds; called once, after the last step, whatever happened."""
        return


EnvironmentT = TypeVar("EnvironmentT", bound=Environment)

_ENVIRONMENTS: Final[Registry[Callable[[], Environment]]] = Registry(
    "environment",
    form="a class with async reset(self, arguments: M)",
    setting="rollout.environments.modules",
    built_in=("transforms.environments.calculator", "transforms.environments.guess_number"),
)
load = _ENVIRONMENTS.load
find = _ENVIRONMENTS.find
check = _ENVIRONMENTS.check
parse_arguments = _ENVIRONMENTS.parse_arguments


def environment(name: str) -> Callable[[type[EnvironmentT]], type[EnvironmentT]]:
    """Registers a class, which is called without arguments for each sample, under ``name``.

    Raises:
        ConfigError: the name belongs to another class, or the arguments of ``reset`` are not annotated
            with a pydantic model.
    """

    def register(made: type[EnvironmentT]) -> type[EnvironmentT]:
        _ENVIRONMENTS.add(name, made, made.reset)
        return made

    return register
