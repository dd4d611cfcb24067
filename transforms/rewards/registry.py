"""Rewards by name: typed functions ``(sample, arguments) -> Reward``, pure and testable without Beam.

    @reward("starts_with")
    def starts_with(sample: Sample, arguments: Prefix) -> Reward:
        return Reward(float(sample.response_text.startswith(arguments.prefix)))

The class of ``arguments`` is taken from the annotation. A prompt's arguments are checked against it
when the prompt arrives, so a reward is never called with arguments that it does not understand.
A program's own rewards are registered by importing the modules named in ``rewards.modules``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from schemas.prompts import ENVIRONMENT_REWARD, FEEDBACK_REWARD
from schemas.trajectories import Sample
from transforms.registry import Arguments, Registry

__all__ = ["Arguments", "Reward", "reward"]


@dataclass(frozen=True, slots=True)
class Reward:
    """What a reward function returns. Example: ``Reward(0.9, {"answer": 1.0, "brevity": -0.1})``."""

    value: float
    """A finite number."""
    parts: dict[str, float] = field(default_factory=dict)
    """What it was made of, for figures; may be empty."""


ArgumentsT = TypeVar("ArgumentsT", bound=BaseModel)
RewardFunction = Callable[[Sample, Any], Reward]

_REWARDS: Final[Registry[RewardFunction]] = Registry(
    "reward",
    form="a function (sample: Sample, arguments: M) -> Reward",
    setting="rewards.modules",
    built_in=tuple(
        f"transforms.rewards.{name}"
        for name in (
            "chrf",
            "closeness",
            "code",
            "countdown",
            "exact_match",
            "format",
            "instructions",
            "judge",
            "label",
            "last_number",
            "length",
            "math",
            "reward_model",
            "span",
            "weighted",
        )
    ),
    reserved=(FEEDBACK_REWARD, ENVIRONMENT_REWARD),
)
load = _REWARDS.load
find = _REWARDS.find
check = _REWARDS.check
reserved = _REWARDS.reserved
parse_arguments = _REWARDS.parse_arguments


def reward(
    name: str,
) -> Callable[[Callable[[Sample, ArgumentsT], Reward]], Callable[[Sample, ArgumentsT], Reward]]:
    """Registers a function under ``name``.

    Raises:
        ConfigError: the name belongs to another function, or ``arguments`` is not annotated with a
            pydantic model.
    """

    def register(function: Callable[[Sample, ArgumentsT], Reward]) -> Callable[[Sample, ArgumentsT], Reward]:
        _REWARDS.add(name, function, function)
        return function

    return register
