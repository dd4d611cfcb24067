"""How prompts of a task are drawn, as the user says it."""

from collections.abc import Sequence
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from schemas.sections import Positive, Section

_STEPS: Final = 1 << 20
"""Scaled rewards are rounded to parts of this many, so that their sums and halves are exact: what is known of a prompt
does not depend on the order in which its results are read."""


class Selection(Section):
    """How prompts of a task are drawn."""

    floor: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Weight of a prompt that nothing can be learned from; the best one has 1 more. Nothing is ever ruled out."""
    power: Annotated[float, Field(ge=0, le=10)] = 2.0
    """Of what can be learned from a prompt, in its weight: 0 draws all alike, more than 1 is choosier."""
    half_life: Positive = 128
    """Weight versions after which what was seen of a prompt counts half, so that what was too hard is tried again."""
    reward_low: float = 0.0
    """Reward of a failure; less is a failure too."""
    reward_high: float = 1.0
    """Reward of a success; more is a success too. Between the two is a part of a success."""

    @model_validator(mode="after")
    def _has_range(self) -> Self:
        if self.reward_low >= self.reward_high:
            raise ValueError(
                f"reward_low = {self.reward_low} is not below reward_high = {self.reward_high}: "
                "give the rewards of a failure and of a success"
            )
        return self

    def passed(self, rewards: Sequence[float]) -> float:
        """How many successes the rewards are worth, from 0 to their number."""
        low, high = self.reward_low, self.reward_high
        return sum(round(min(1.0, max(0.0, (each - low) / (high - low))) * _STEPS) for each in rewards) / _STEPS
