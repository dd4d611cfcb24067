"""``instructions``: the share of a prompt's instructions that the answer follows, each checked by a function."""

from typing import Any, Final, Self

from pydantic import Field, model_validator

from schemas.trajectories import Sample
from transforms.rewards.checks import follows
from transforms.rewards.registry import Arguments, Reward, reward

_CHECKED_CHARACTERS: Final = 200_000
"""More is no answer that anyone asked for, and follows nothing."""


class Instruction(Arguments):
    """Example: ``{"name": "length_constraints:number_words", "args": {"num_words": 300, "relation": "at least"}}``."""

    name: str
    """One of ``transforms.rewards.checks``, named as IFEval names it."""
    args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_be_checked(self) -> Self:
        follows(self.name, "", self.args)
        return self


class Instructions(Arguments):
    """Example: ``{"instructions": [{"name": "punctuation:no_comma"}]}``."""

    instructions: tuple[Instruction, ...] = Field(min_length=1, max_length=32)


@reward("instructions")
def instructions(sample: Sample, arguments: Instructions) -> Reward:
    """The share that the response follows, from 0 to 1."""
    text = sample.response_text
    if len(text) > _CHECKED_CHARACTERS:
        return Reward(0.0)
    followed = [follows(asked.name, text, asked.args) for asked in arguments.instructions]
    return Reward(sum(followed) / len(followed), {"all": float(all(followed))})
