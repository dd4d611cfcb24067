"""``closeness``: how near the number of an answer is to the right one."""

from typing import Self

from pydantic import Field, model_validator

from schemas.trajectories import Sample
from transforms.rewards.last_number import find_numbers
from transforms.rewards.registry import Arguments, Reward, reward


class NearNumber(Arguments):
    """Example: ``{"answer": 3.8, "lowest": 0, "highest": 5}``."""

    answer: float = Field(allow_inf_nan=False)
    """The right number."""
    lowest: float = Field(default=0.0, allow_inf_nan=False)
    """The least that may be answered."""
    highest: float = Field(allow_inf_nan=False)
    """The most that may be answered."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.lowest < self.highest or not self.lowest <= self.answer <= self.highest:
            raise ValueError(f"answer {self.answer}, {self.lowest} to {self.highest}: expected a number in a range")
        return self


@reward("closeness")
def closeness(sample: Sample, arguments: NearNumber) -> Reward:
    """1 for the right number, falling evenly to 0 for one that is the whole range away.

    An answer without a number, with two different ones, or with one outside of the range gets 0.
    """
    given = number_in(sample.response_text, arguments.lowest, arguments.highest)
    if given is None:
        return Reward(0.0)
    return Reward(1 - abs(given - arguments.answer) / (arguments.highest - arguments.lowest))


def number_in(text: str, lowest: float, highest: float) -> float | None:
    """The number that a text names, None if it names none, several, or one outside of the range."""
    named = set(find_numbers(text))
    if len(named) != 1:
        return None
    number = named.pop()
    return float(number) if lowest <= number <= highest else None
