"""``format``: whether an answer has the form asked for, such as an answer between tags."""

import re

from pydantic import Field, field_validator

from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward


class Form(Arguments):
    r"""Example: ``{"pattern": "<think>.*</think>\\s*<answer>.*</answer>"}``."""

    pattern: str = Field(min_length=1, max_length=1000)
    """A regular expression of Python for the whole answer but white space around it; a dot stands for line ends too."""
    ignore_case: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


@reward("format")
def has_format(sample: Sample, arguments: Form) -> Reward:
    """1 if the whole answer matches, else 0. A pattern that takes for ever ends at the reward's time limit."""
    flags = re.DOTALL | (re.IGNORECASE if arguments.ignore_case else 0)
    return Reward(float(re.fullmatch(arguments.pattern, sample.response_text.strip(), flags) is not None))
