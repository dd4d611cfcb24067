"""Who talks to the gateway: users that differ in what they like, how often they err, and how long they take."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

_Any = TypeVar("_Any")
_SPREAD: Final = 0.5
"""Of the logarithm of a user's mean delay: some take twice as long as others."""


@dataclass(frozen=True)
class Habits:
    """What all users of a population have in common."""

    noise: float = 0.05
    """Share of judgements that are the opposite of what is meant."""
    delay_s: float = 1.0
    """Mean time from an answer to its judgement; exponentially distributed."""
    dropout: float = 0.1
    """Share of answers that are not judged at all."""
    shuffled: bool = False
    """Thumbs by chance, and corrections that belong to other questions: the control, under which nothing may be
    learned of what is right."""
    corrections: float = 0.0
    """Share of thumbs down that are followed by what should have been answered, where the application knows that."""


@dataclass
class User:
    """One of them, with dice of their own: what one does never depends on another."""

    name: str
    habits: Habits
    mean_delay_s: float
    dice: random.Random

    def choose(self, questions: Sequence[_Any]) -> _Any:
        """What to ask next."""
        return self.dice.choice(questions)

    def judge(self, likes: bool) -> bool | None:
        """The thumb that is given: up, down, or none.

        Args:
            likes: what the user really thinks.
        """
        drops, errs, coin = (self.dice.random() for _ in range(3))
        if drops < self.habits.dropout:
            return None
        if self.habits.shuffled:
            return coin < 0.5
        return likes != (errs < self.habits.noise)

    def corrects(self) -> bool:
        """Whether a thumb down is followed by what should have been answered."""
        return self.habits.corrections > 0 and self.dice.random() < self.habits.corrections

    def delay_s(self) -> float:
        """How long the user takes for a judgement."""
        return self.dice.expovariate(1 / self.mean_delay_s) if self.mean_delay_s else 0.0


def populate(users: int, habits: Habits, seed: int) -> list[User]:
    """A population; the same for the same seed."""
    dice = random.Random(seed)
    return [_draw(f"user-{number}", habits, dice) for number in range(users)]


def _draw(name: str, habits: Habits, dice: random.Random) -> User:
    delay_s = habits.delay_s * dice.lognormvariate(0, _SPREAD)
    return User(name, habits, delay_s, random.Random(dice.getrandbits(64)))
