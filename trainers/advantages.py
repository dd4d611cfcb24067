"""Advantages: how much better a sample is than the others of its group."""

from collections.abc import Sequence
from typing import Final

import numpy as np

EPSILON: Final = 1e-6
"""Keeps the quotient finite; far below the deviation of any rewards that differ."""


def normalise(rewards: Sequence[float | None]) -> list[float | None]:
    """(reward - mean) / (standard deviation + epsilon) within one group (GRPO, arXiv:2402.03300).

    The deviation is that of the population. A null reward takes no part and stays null.
    """
    known = np.array([reward for reward in rewards if reward is not None], dtype=np.float64)
    if not len(known):
        return [None] * len(rewards)
    mean, deviation = float(known.mean()), float(known.std())
    return [None if reward is None else (reward - mean) / (deviation + EPSILON) for reward in rewards]


def has_variance(rewards: Sequence[float | None]) -> bool:
    """Whether a group can teach anything: two known rewards or more that are not all equal."""
    known = [reward for reward in rewards if reward is not None]
    return len(known) >= 2 and max(known) - min(known) > EPSILON
