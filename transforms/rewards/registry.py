"""Rewards by name: typed functions ``(sample, arguments) -> Reward``, pure and testable without Beam.

    @reward("starts_with")
    def starts_with(sample: Sample, arguments: Prefix) -> Reward:
        return Reward(float(sample.response_text.startswith(arguments.prefix)))

The class of ``arguments`` is taken from the annotation. A prompt's arguments are checked against it
when the prompt arrives, so a reward is never called with arguments that it does not understand.
A program's own rewards are registered by importing the modules named in ``rewards.modules``.
"""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import ConfigError, RecordError
from schemas.prompts import FEEDBACK_REWARD, RewardSpec
from schemas.records import first_fault
from schemas.trajectories import Sample

_BUILT_IN = ("transforms.rewards.exact_match", "transforms.rewards.last_number", "transforms.rewards.math")


@dataclass(frozen=True, slots=True)
class Reward:
    """What a reward function returns. Example: ``Reward(0.9, {"answer": 1.0, "brevity": -0.1})``."""

    value: float
    """A finite number."""
    parts: dict[str, float] = field(default_factory=dict)
    """What it was made of, for figures; may be empty."""


class Arguments(BaseModel):
    """Base of the arguments of a reward: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


ArgumentsT = TypeVar("ArgumentsT", bound=BaseModel)
RewardFunction = Callable[[Sample, Any], Reward]


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered reward."""

    name: str
    function: RewardFunction
    arguments: type[BaseModel]


_ENTRIES: dict[str, Entry] = {}


def reward(
    name: str,
) -> Callable[[Callable[[Sample, ArgumentsT], Reward]], Callable[[Sample, ArgumentsT], Reward]]:
    """Registers a function under ``name``; a module that is imported twice registers it again.

    Raises:
        ConfigError: the name belongs to another function, or ``arguments`` is not annotated with a
            pydantic model.
    """

    def register(function: Callable[[Sample, ArgumentsT], Reward]) -> Callable[[Sample, ArgumentsT], Reward]:
        known = _ENTRIES.get(name)
        if name == FEEDBACK_REWARD or (known and _origin(known.function) != _origin(function)):
            raise ConfigError(f"reward {name!r} is registered twice; give {_origin(function)} another name")
        _ENTRIES[name] = Entry(name, function, _arguments_class(name, function))
        return function

    return register


def _origin(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _arguments_class(name: str, function: Callable[..., Any]) -> type[BaseModel]:
    annotation = get_type_hints(function).get("arguments")
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        raise ConfigError(
            f"reward {name!r}: expected a function (sample: Sample, arguments: M) -> Reward "
            f"with a pydantic model M, its arguments are annotated {annotation!r}"
        )
    return annotation


def load(modules: Iterable[str] = ()) -> list[str]:
    """Imports the rewards of this package and ``modules``.

    Returns:
        All registered names.

    Raises:
        ConfigError: a module cannot be imported.
    """
    for module in (*_BUILT_IN, *modules):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"rewards.modules names {module}, which cannot be imported: {error}") from error
    return sorted(_ENTRIES)


def find(name: str) -> Entry:
    """The reward of that name.

    Raises:
        RecordError: ``unknown_reward``, with the nearest name.
    """
    entry = _ENTRIES.get(name)
    if entry is None:
        known = sorted([*_ENTRIES, FEEDBACK_REWARD])
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise RecordError("unknown_reward", f"no reward is registered as {name[:80]!r}; {hint}")
    return entry


def check(spec: RewardSpec) -> None:
    """Whether the reward exists and understands its arguments. ``feedback`` takes any.

    Raises:
        RecordError: ``unknown_reward`` or ``bad_reward_arguments``.
    """
    if spec.name != FEEDBACK_REWARD:
        parse_arguments(find(spec.name), spec)


def parse_arguments(entry: Entry, spec: RewardSpec) -> BaseModel:
    """The typed arguments.

    Raises:
        RecordError: ``bad_reward_arguments``.
    """
    try:
        return entry.arguments.model_validate(spec.args)
    except ValidationError as error:
        raise RecordError("bad_reward_arguments", f"reward {spec.name!r}: {first_fault(error)}") from error
