"""Environments by name: what a model talks to between its turns. One instance for each sample.

    @environment("parrot")
    class Parrot(Environment):
        async def reset(self, arguments: Word) -> None:
            self._word = arguments.word

        async def step(self, answer: Answer) -> Step:
            return Step(done=True, reward=float(answer.text == self._word))

The class of ``arguments`` is taken from the annotation of ``reset``. A prompt's arguments are checked
against it when the prompt arrives. A program's own environments are registered by importing the
modules named in ``rollout.environments.modules``. What all instances of one read lies in the directory
that ``rollout.environments.data`` names for it: never in one that a prompt names.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.config import EnvironmentsConfig
from schemas.errors import ConfigError, RecordError
from schemas.prompts import EnvironmentSpec, Message
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

    config: EnvironmentsConfig = EnvironmentsConfig()
    """``rollout.environments`` of the run; there before :meth:`reset`."""
    reads_data: ClassVar[bool] = False
    """Whether it needs a directory of data."""

    @classmethod
    def read_data(cls, directory: Path) -> None:  # noqa: ARG003 - most read none
        """Reads what all instances share; called once in each process, before the first of them.

        Raises:
            ConfigError: it does not hold what it should.
        """
        return

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

_ENVIRONMENTS: Final[Registry[type[Environment]]] = Registry(
    "environment",
    form="a class with async reset(self, arguments: M)",
    setting="rollout.environments.modules",
    built_in=(
        "transforms.environments.calculator",
        "transforms.environments.guess_number",
        "transforms.environments.tau_retail.environment",
    ),
)
_READ: Final[dict[str, Path]] = {}
"""The directory that each environment has read in this process."""
_NOTHING_ELSE: Final = EnvironmentsConfig()
find = _ENVIRONMENTS.find
parse_arguments = _ENVIRONMENTS.parse_arguments


def load(config: EnvironmentsConfig = _NOTHING_ELSE) -> list[str]:
    """Imports what comes with the project and the configured modules, and lets environments read their data, once.

    Returns:
        All registered names.

    Raises:
        ConfigError: a module cannot be imported, or a directory is for no environment or not what it needs.
    """
    names = _ENVIRONMENTS.load(config.modules)
    for name, directory in config.data.items():
        if _READ.get(name) != directory:
            _read(name, directory)
            _READ[name] = directory
    return names


def _read(name: str, directory: Path) -> None:
    key = f"rollout.environments.data.{name}"
    try:
        entry = find(name)
    except RecordError as error:
        raise ConfigError(f"{key}: {error.detail}") from error
    if not entry.thing.reads_data:
        raise ConfigError(f"{key} = {str(directory)!r}: this environment reads no data; leave it out")
    try:
        entry.thing.read_data(directory)
    except ConfigError as error:
        raise ConfigError(f"{key} = {str(directory)!r}: {error}") from error


def check(spec: EnvironmentSpec) -> None:
    """Whether the environment exists, has its data and understands its arguments.

    Raises:
        RecordError: ``unknown_environment``, ``environment_without_data`` or ``bad_environment_arguments``.
    """
    _ENVIRONMENTS.check(spec)
    if find(spec.name).thing.reads_data and spec.name not in _READ:
        detail = f"environment {spec.name!r} reads a directory; name it as rollout.environments.data.{spec.name}"
        raise RecordError("environment_without_data", detail)


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
