"""``length``: whether an answer is as short as it should be; alone it teaches silence, so see ``weighted``."""

from typing import Self

from pydantic import Field, model_validator

from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward


class Lengths(Arguments):
    """Example: ``{"short_tokens": 32, "long_tokens": 128}``."""

    short_tokens: int = Field(ge=0)
    """The longest answer that costs nothing."""
    long_tokens: int = Field(ge=1)
    """From here on an answer is worth nothing."""
    least_tokens: int = Field(default=0, ge=0)
    """A shorter answer is worth nothing either."""

    @model_validator(mode="after")
    def _ascend(self) -> Self:
        if not self.least_tokens <= self.short_tokens < self.long_tokens:
            raise ValueError(
                f"least_tokens {self.least_tokens}, short_tokens {self.short_tokens}, long_tokens {self.long_tokens}: "
                "expected least <= short < long"
            )
        return self


@reward("length")
def length(sample: Sample, arguments: Lengths) -> Reward:
    """1 up to ``short_tokens``, falling evenly to 0 at ``long_tokens`` (as DAPO's buffer, arXiv:2503.14476)."""
    tokens = len(sample.response_token_ids)
    if tokens < arguments.least_tokens:
        return Reward(0.0)
    left = (arguments.long_tokens - tokens) / (arguments.long_tokens - arguments.short_tokens)
    return Reward(min(1.0, max(0.0, left)))
