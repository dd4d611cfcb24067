"""Rewards of the drill: one that can be computed again by whoever reads the log, and some that misbehave.

Imported by the reward processes, so nothing heavy here.
"""

import time
from typing import Final

from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward

SHARE: Final = "drill_share"
HOSTILE: Final = ("drill_hang", "drill_raise", "drill_nan")
"""Their samples must have no reward, ever."""


class Letter(Arguments):
    """Which character is wanted."""

    letter: str


def share_of(text: str, letter: str) -> float:
    """The share of one character in a text: dense, so that the samples of a group differ."""
    return text.count(letter) / max(1, len(text))


@reward(SHARE)
def drill_share(sample: Sample, arguments: Letter) -> Reward:
    """The share of one character in the answer."""
    return Reward(share_of(sample.response_text, arguments.letter))


@reward("drill_hang")
def drill_hang(sample: Sample, arguments: Letter) -> Reward:  # noqa: ARG001 - the form of rewards
    """Never returns."""
    while True:
        time.sleep(1)


@reward("drill_raise")
def drill_raise(sample: Sample, arguments: Letter) -> Reward:
    """Raises."""
    raise RuntimeError(f"no reward for {arguments.letter} in {sample.response_text[:10]!r}")


@reward("drill_nan")
def drill_nan(sample: Sample, arguments: Letter) -> Reward:  # noqa: ARG001 - the form of rewards
    """Gives what is not a number."""
    return Reward(float("nan"))
