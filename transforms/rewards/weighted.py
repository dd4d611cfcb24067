"""``weighted``: several rewards as one number, such as a right answer that is short and in the form asked for.

    {"of": [{"name": "math", "args": {…}, "weight": 0.9}, {"name": "length", "args": {…}, "weight": 0.1}]}
        ──each of them──► values ──sum of weight · value──► reward, and its parts by name

A part that cannot be computed leaves the whole without a number: the rest of the sum would be one of something else.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final, Self

from pydantic import Field, model_validator

from schemas.errors import RecordError
from schemas.prompts import RewardSpec
from schemas.trajectories import Sample
from transforms.rewards import registry
from transforms.rewards.registry import Arguments, Reward, reward

NAME: Final = "weighted"
_MOST_PARTS: Final = 16


class Part(RewardSpec):
    """Example: ``{"name": "last_number", "args": {"answer": "5"}, "weight": 0.9}``."""

    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Times the part's value; below 0 for what is unwanted."""


class Parts(Arguments):
    """Example: ``{"of": [{"name": "exact_match", "args": {"answer": "Paris"}}]}``."""

    of: tuple[Part, ...] = Field(min_length=1, max_length=_MOST_PARTS)
    """What is added up; a reward may stand there several times."""

    @model_validator(mode="after")
    def _are_rewards(self) -> Self:
        for part in self.of:
            _check(part)
        return self


def _check(part: Part) -> None:
    if part.name == NAME or part.name in registry.reserved:
        raise ValueError(f"{part.name!r} cannot be a part: expected a function that scores by itself")
    try:
        registry.check(part)
    except RecordError as error:
        raise ValueError(str(error)) from error


@reward(NAME)
def weighted(sample: Sample, arguments: Parts) -> Reward:
    """The sum of weight times value; see :func:`add_up`."""
    return add_up(arguments.of, [_score(sample, part) for part in arguments.of])


def add_up(of: Sequence[Part], scores: Sequence[Reward]) -> Reward:
    """The sum of weight times value; ``parts`` has the value of each by its name, and its own parts behind a slash.

    Args:
        of: one or more parts.
        scores: what each gave, in their order.
    """
    value = sum(part.weight * score.value for part, score in zip(of, scores, strict=True))
    parts: dict[str, float] = {}
    for name, score in zip(_names(of), scores, strict=True):
        parts |= {name: score.value, **{f"{name}/{inner}": number for inner, number in score.parts.items()}}
    return Reward(value, parts)


def _score(sample: Sample, part: Part) -> Reward:
    entry = registry.find(part.name)
    return entry.thing(sample, registry.parse_arguments(entry, part))


def _names(parts: Sequence[Part]) -> list[str]:
    """The name of each; of those that stand there several times with its number behind it, from 1."""
    often, seen = Counter(part.name for part in parts), Counter[str]()
    names = []
    for part in parts:
        seen[part.name] += 1
        names.append(part.name if often[part.name] == 1 else f"{part.name}-{seen[part.name]}")
    return names
