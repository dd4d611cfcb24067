"""``guess_number``: the model finds a number by guessing; it is told whether to go higher or lower."""

import re
from typing import Final, Self

from pydantic import Field, model_validator

from schemas.prompts import Message
from transforms.environments.registry import Answer, Arguments, Environment, Step, environment

_NUMBER: Final = re.compile(r"-?\d{1,18}")


class Secret(Arguments):
    """Example: ``{"secret": 42, "low": 1, "high": 100}``."""

    secret: int
    low: int = 1
    """The smallest number that it may be."""
    high: int = 100
    """The largest number that it may be."""
    step_cost: float = Field(default=0.0, ge=0, le=1)
    """What each wrong guess takes from the reward."""

    @model_validator(mode="after")
    def _is_inside(self) -> Self:
        if not self.low <= self.secret <= self.high:
            raise ValueError(f"secret {self.secret}, expected {self.low} to {self.high}")
        return self


@environment("guess_number")
class GuessNumber(Environment):
    """1 for the right number and 0 otherwise, less ``step_cost`` for every wrong guess.

    The guess is the last whole number of an answer; an answer without one, or outside the bounds, is a
    wrong guess.
    """

    async def reset(self, arguments: Secret) -> None:
        """Takes the number."""
        self._game = arguments

    async def step(self, answer: Answer) -> Step:
        """Says ``higher`` or ``lower``."""
        game, guess = self._game, find_guess(answer.text)
        if guess == game.secret:
            return Step(done=True, reward=1.0, parts={"found": 1.0})
        if guess is None or not game.low <= guess <= game.high:
            hint = f"guess a number from {game.low} to {game.high}"
        else:
            hint = "higher" if guess < game.secret else "lower"
        return Step(messages=(Message(role="user", content=hint),), reward=-game.step_cost, parts={"found": 0.0})


def find_guess(text: str) -> int | None:
    """The last whole number of a text, None if there is none."""
    found = _NUMBER.findall(text)
    return int(found[-1]) if found else None
